"""Errors of file readers. Every exception is converted to a one-line message that contains the file name.

A reader raises `FileError` with a description of the fault. `reading` adds the file's name and converts every
other exception, so a new reader needs no error handling.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 400


class FileError(ValueError):
    """Error for a fault in a file's content. The message contains the fault and the fix. `reading` adds the
    file's name.
    """


@contextmanager
def reading(path: str | Path, kind: str, format_name: str) -> Iterator[None]:
    """Convert the exceptions of a reader to errors that contain the file's name.

    kind, format_name: the words in messages such as "mesh file X: cannot be read as ply (...)". In this
    example, kind is "mesh file" and format_name is "ply".

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
    # All exceptions are caught, because libraries raise errors of many types for a damaged file.
    except Exception as error:
        reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()))
        text = (
            f"{kind} {path}: cannot be read as {format_name} ({reason}); it is damaged, or not in this format"
        )
        raise ValueError(printable(text)) from error


def shortened(text: str) -> str:
    """Return `text`. If it is longer than LONGEST, its middle is removed."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"


def printable(text: str) -> str:
    """Return `text` on one line, with escapes for control characters and undecodable bytes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
