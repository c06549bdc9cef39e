"""SHA-256 of a file. The interpreter lock is hardly used, so other threads can work at the same time."""

import hashlib
from pathlib import Path

# Each part is read and hashed without the interpreter lock. The parts are large, because a thread waits up to
# 5 ms for the lock.
PART_BYTES = 16 << 20


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(PART_BYTES):
            digest.update(part)
    return digest.hexdigest()
