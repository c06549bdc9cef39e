"""Get the error message of a reader that rejects a file."""

import pytest


def refusal(path, read) -> str:
    """Return the error message. Check that it is one printable line that contains the file's name."""
    with pytest.raises(ValueError) as caught:
        read(str(path))
    message = str(caught.value)
    assert message.isprintable() and path.name in message
    return message
