"""Files with a step as their name (000400.png), and warnings about files that cannot be written."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


def numbered_files(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """Return the files NUMBER.suffix in a folder with their numbers, ascending. Other files are ignored."""
    name = re.compile(rf"([0-9]+){re.escape(suffix)}")
    if not folder.is_dir():
        return []
    matches = [(name.fullmatch(path.name), path) for path in folder.iterdir() if path.is_file()]
    return sorted((int(match[1]), path) for match, path in matches if match)


@contextmanager
def warn_on_error(path: Path, warned: set[Path] | None = None) -> Iterator[None]:
    """If the block fails, log a warning with `path`: a picture that is not written must not end a run.

    warned: the paths for which a warning was already logged; if given, only one warning is logged for each
    path.
    """
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        if warned is None or path not in warned:
            logger.warning("warning: %s is not written: %s", path, " ".join(reason.split()))
        if warned is not None:
            warned.add(path)
