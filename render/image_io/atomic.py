"""Atomic writes. A file is written under a temporary name in the same folder and then renamed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# The prefix of temporary files and folders. If a run is killed, they remain on the disk, and
# `remove_temporaries` finds them by this prefix.
TEMPORARY = ".writing_"


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path with the folder and the suffix of `path`. If the block succeeds, the temporary
    file is renamed to `path`.

    Missing parent folders are created. After an exception, the temporary file is removed, and an existing
    file at `path` is unchanged. An OSError without a file name is raised again with the name `path`.
    """
    path = Path(path)
    with naming_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f"{TEMPORARY}{path.stem}-", suffix=path.suffix, dir=path.parent
        )
    os.close(handle)
    temporary = Path(name)
    try:
        with naming_errors(path):
            yield temporary
            # mkstemp creates files that only the owner can read, so the file gets the mode that open() would
            # give.
            temporary.chmod(0o666 & ~_current_umask())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(folder: Path | str) -> Iterator[Path]:
    """Yield an empty folder beside `folder`. If the block succeeds, the files in the yielded folder are moved
    into `folder`.

    Files in subfolders are moved to subfolders of `folder` with the same names. All files are moved at the
    end, so files that belong together are replaced within milliseconds. Other files in `folder` are kept.
    After an exception, `folder` is unchanged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{folder.name}-", dir=folder.parent) as name:
        with naming_errors(folder):
            yield Path(name)
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
            target = folder / file.relative_to(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)


def remove_temporaries(folder: Path | str, boundary: str = ".lock") -> None:
    """Remove the temporary files and folders of killed processes in `folder` and its subfolders.

    Subfolders that contain a file named `boundary` belong to other runs and are skipped. Links are not
    followed.
    """
    for root, folders, files in os.walk(folder):
        if boundary in files and Path(root) != Path(folder):
            folders.clear()
            continue
        for name in [name for name in folders if name.startswith(TEMPORARY)]:
            folders.remove(name)
            shutil.rmtree(Path(root, name), ignore_errors=True)
        for name in files:
            if name.startswith(TEMPORARY):
                with contextlib.suppress(OSError):
                    Path(root, name).unlink()


@contextlib.contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Set the file name of an OSError to `path` if the error has no file name or names a temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and TEMPORARY not in str(error.filename)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write `content` to `path` atomically, and flush it to the disk."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path | str, content: str) -> None:
    """Write `content` in UTF-8 to `path` atomically, and flush it to the disk.

    Surrogates, which represent bytes of file names that are not UTF-8, are written as escapes such as
    \\udcff. A JSON parser converts these escapes back to the same characters.
    """
    write_bytes(path, content.encode("utf-8", "backslashreplace"))


@cache
def _current_umask() -> int:
    # The umask is read only once, because reading it requires setting it for a moment, which affects files
    # that other threads create.
    mask = os.umask(0)
    os.umask(mask)
    return mask
