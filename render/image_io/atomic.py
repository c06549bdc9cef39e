"""Files that appear whole or not at all: written beside their place under another name, then renamed."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path in the same folder (same suffix); it becomes `path` when the block ends well.

    Missing parent folders are made. On an exception the temporary file goes and an older `path` stays as it
    was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only the owner can read; give them the mode that open() would have given.
        temporary.chmod(0o666 & ~_current_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(folder: Path | str) -> Iterator[Path]:
    """Yields an empty folder beside `folder`; when the block ends well, its files take their places there.

    So a set of files that belong together changes within milliseconds. Other files of `folder` stay. On an
    exception nothing changes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        yield Path(name)
        for file in sorted(Path(name).iterdir(), key=lambda file: file.stat().st_mtime_ns):
            os.replace(file, folder / file.name)


def write_bytes(path: Path | str, content: bytes) -> None:
    """`content` to `path`, atomically and flushed to the disk."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path | str, content: str) -> None:
    """`content` in UTF-8 to `path`, atomically and flushed to the disk."""
    write_bytes(path, content.encode("utf-8"))


@cache
def _current_umask() -> int:
    # Asking sets it for a moment, which files that other threads make meanwhile would feel: once a process.
    mask = os.umask(0)
    os.umask(mask)
    return mask
