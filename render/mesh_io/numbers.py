"""Parsing of numbers."""

import warnings

import numpy as np
from jaxtyping import Float

from render.read_errors import FileError


def parse_numbers(text: bytes) -> Float[np.ndarray, " N"]:
    """Return the numbers in a text. They must be separated by white space.

    Raises:
        FileError: if the text contains anything else.
    """
    if not text.strip():
        return np.zeros(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, dtype=np.float64, sep=" ")
        except (ValueError, DeprecationWarning):
            raise FileError("its data holds something that is not a number") from None
