"""One run per out_dir: a lock on out_dir/.lock, which the system releases when the process ends."""

import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from configs.schema import Config
from render.image_io.atomic import remove_temporaries
from render.image_io.file_lock import try_lock

LOCK_FILE = ".lock"
# A sweep locks a folder briefly to test whether a run holds the lock. A run therefore tries several times to
# lock it.
ATTEMPTS, PAUSE_SECONDS = 5, 0.1


@contextmanager
def lock_out_dirs(configs: Sequence[Config]) -> Iterator[None]:
    """Lock the out_dir of every config and remove the temporary files of earlier runs that were killed.

    The locks are held until the block ends, so a second start of the same command fails immediately. Folders
    that this function creates are removed at the end if they are still empty.

    Raises:
        ValueError: if another process holds a lock, or if out_dir cannot be written to.
    """
    with ExitStack() as stack:
        for config in configs:
            stack.enter_context(lock_folder(config.run.output_folder, f"out_dir = {config.run.out_dir!r}"))
            remove_temporaries(config.run.output_folder)
        yield


@contextmanager
def lock_folder(folder: Path, label: str, name: str = LOCK_FILE) -> Iterator[None]:
    """Hold a lock on the file folder/name.

    label: the start of the error message, for example "out_dir = 'a'".

    Raises:
        ValueError: if another process holds the lock, or if the folder cannot be written to.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _acquire(folder / name)
    except OSError as error:
        raise ValueError(f"{label}: cannot write to {folder}: {error.strerror or error}") from error
    if file is None:
        raise ValueError(
            f"{label}: another run{_holder(folder / name)} writes to {folder}; wait for its end or stop it, "
            "or choose another out_dir"
        )
    with file:
        # If the disk is full, the lock still works, but the file does not name the process that holds it.
        with suppress(OSError):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            file.flush()
        try:
            yield
        finally:
            _remove_if_empty(folder / name, created)


def is_locked(folders: Iterable[Path]) -> bool:
    """Return whether a run holds the lock of one of the folders."""
    for folder in folders:
        if (folder / LOCK_FILE).exists():
            file = try_lock(folder / LOCK_FILE)
            if file is None:
                return True
            file.close()
    return False


def _acquire(path: Path) -> BinaryIO | None:
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        if (file := try_lock(path)) is not None:
            return file
    return None


def _holder(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[:200]
    except OSError:
        return ""
    return f" ({text})" if text.isprintable() and text else ""


def _remove_if_empty(lock: Path, created: Sequence[Path]) -> None:
    """Remove the folders that were created for the lock, deepest first, if they contain nothing else."""
    with suppress(OSError):
        if created and os.listdir(lock.parent) == [lock.name]:
            lock.unlink()
            for folder in created:
                folder.rmdir()
