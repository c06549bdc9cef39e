"""Output to the terminal. Control characters are escaped, and errors are printed on one line.

A write error does not stop a run. If the pipe is closed or the disk is full, log lines are lost.
"""

import logging
import re
import sys
from collections.abc import Callable
from typing import TextIO

logger = logging.getLogger(__name__)

# C0 and C1 control characters except tab and newline, and the Unicode characters that change the text
# direction.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
WARNING = "warning: "


class LossyStream:
    """A text stream that discards output if writing fails.

    Other operations are passed to the wrapped stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


class LineFormatter(logging.Formatter):
    """A log formatter that escapes control characters, because a message may contain text from a file.

    The line of a warning starts with "warning: ".
    """

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno == logging.WARNING and not text.startswith(WARNING):
            text = WARNING + text
        return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


# Libraries whose log messages are not shown, because the messages are details of hub requests or mesh files.
QUIET_LIBRARIES = {"httpx", "httpcore", "trimesh", "DracoPy"}


def is_for_the_user(record: logging.LogRecord) -> bool:
    """Return whether a log message is shown, which is false for messages of QUIET_LIBRARIES."""
    return record.name.partition(".")[0] not in QUIET_LIBRARIES


def setup_logging() -> None:
    """Log to stderr without time and level. Messages of QUIET_LIBRARIES are not shown."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(LineFormatter("%(message)s"))
            handler.addFilter(is_for_the_user)


def describe_error(error: BaseException) -> str:
    """Return the message of an error on one line. For an OSError, return the file name and the reason."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def run_tool(act: Callable[[], object]) -> int:
    """Call `act`, the work of a command-line program other than train.py, and return the exit code.

    Log messages go to standard output. On a GPU, matrix products and convolutions use TF32. The exit code is
    0 on success, and 2 after a ValueError or OSError, which is logged in one line.
    """
    import torch

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    try:
        act()
    except (ValueError, OSError) as error:
        logger.error("error: %s", describe_error(error))
        return 2
    return 0
