"""Advisory file locks. The system releases a lock when its process ends, also after SIGKILL."""

import errno
import fcntl
import os
from pathlib import Path
from typing import BinaryIO

# Errors of file systems that have no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def try_lock(path: Path | str) -> BinaryIO | None:
    """Lock `path` and return the open file, or None if the lock is held already. A missing file is created.

    Closing the file releases the lock. On a file system without locks, every call succeeds.

    Raises:
        OSError: if the file cannot be opened or created.
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
        # The holder of the lock may have deleted the file between the two calls. A lock on a deleted file has
        # no effect.
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
