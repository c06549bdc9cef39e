"""Get the error message of a reader that rejects a file."""

import pytest


def refusal(path, read) -> str:
    """Return the error message of `read`, after checking that it is one line with the name of the file."""
    with pytest.raises(ValueError) as caught:
        read(str(path))
    message = str(caught.value)
    assert message.isprintable() and path.name in message
    return message
