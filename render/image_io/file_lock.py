"""Advisory file locks. The system releases a lock when the process ends, also after SIGKILL."""

import errno
import fcntl
import os
from pathlib import Path
from typing import BinaryIO

# Errors that indicate a file system without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def try_lock(path: Path | str) -> BinaryIO | None:
    """Lock `path` and return the open file, or None if it is locked already. A missing file is created.

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
        # Another process may have deleted the file between open and flock, and the lock is valid only if the
        # file still exists.
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
