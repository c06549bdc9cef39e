"""Advisory file locks. The system releases a lock when its process ends, also after SIGKILL."""

import errno
import fcntl
import os
from pathlib import Path
from typing import BinaryIO

# Errors of file systems that have no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def try_lock(path: Path | str) -> BinaryIO | None:
    """Lock `path`, which is created if it is missing; returns the open file, None if the lock is taken.

    Closing the file releases the lock. On a file system without locks, every call succeeds.

    Raises:
        OSError: the file cannot be opened or created.
    """
    while True:
        file = open(path, "ab+")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                file.close()
                raise
        # The holder may have deleted the file between the two calls. A lock on a deleted file protects
        # nothing.
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
