"""Errors of file readers: every exception becomes a one-line message that names the file.

A reader raises `FileError` with the fault. `reading` adds the file's name and translates every other
exception, so a new reader needs no error handling of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 400


class FileError(ValueError):
    """A fault of a file's content. The message contains the fix. `reading` adds the file's name."""


@contextmanager
def reading(path: str | Path, kind: str, format_name: str) -> Iterator[None]:
    """Translate the exceptions of a reader.

    kind and format_name are for the message: "mesh file X: cannot be read as ply (...)".

    Raises:
        ValueError: if the block raises any exception other than OSError.
        OSError: if the block raises OSError. The file's name is added.
    """
    try:
        yield
    except FileError as error:
        raise ValueError(printable(f"{kind} {path}: {shortened(str(error))}")) from error
    except OSError as error:
        raise type(error)(printable(f"{kind} {path}: {error.strerror or error}")) from error
    except MemoryError as error:
        reason = f"reading it as {format_name} needs more memory than this machine has"
        raise ValueError(printable(f"{kind} {path}: {reason}")) from error
    # Libraries raise errors of many types for a damaged file.
    except Exception as error:
        reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()))
        text = (
            f"{kind} {path}: cannot be read as {format_name} ({reason}); it is damaged, or not in this format"
        )
        raise ValueError(printable(text)) from error


def shortened(text: str) -> str:
    """`text` without its middle if it is longer than LONGEST."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"


def printable(text: str) -> str:
    """`text` on one line, with escapes for control characters and undecodable bytes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
