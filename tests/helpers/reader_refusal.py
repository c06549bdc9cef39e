"""The error of a reader for a file that it rejects."""

import pytest


def refusal(path, read) -> str:
    """The message: one printable line that contains the file's name."""
    with pytest.raises(ValueError) as caught:
        read(str(path))
    message = str(caught.value)
    assert message.isprintable() and path.name in message
    return message
