"""Compiled loops that read the list lengths of PLY rows of different sizes.

The offset of a row depends on all previous rows, so the loops cannot be vectorised.
"""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def list_lengths(data, start, rows, widths, counts, signed, big_endian):
    """Return the list lengths [rows, lists]. If the data ends early or a length is negative, the result has
    fewer rows.

    data: the bytes of the file. widths: for each property, the size of a value in bytes. counts: for each
    property, the size of the list length in bytes, 0 for a scalar. signed: whether the list length is signed.
    """
    out = np.zeros((rows, (counts > 0).sum()), dtype=np.int64)
    at, end = start, len(data)
    for row in range(rows):
        column = 0
        for k in range(len(widths)):
            number = 1
            if counts[k]:
                if at + counts[k] > end:
                    return out[:row]
                number = 0
                for byte in range(counts[k]):
                    number |= np.int64(data[at + byte]) << (
                        8 * (counts[k] - 1 - byte if big_endian else byte)
                    )
                if signed[k] and number >> (8 * counts[k] - 1):
                    return out[:row]
                out[row, column] = number
                column += 1
                at += counts[k]
            at += number * widths[k]
            if at > end:
                return out[:row]
    return out


@numba.njit(cache=True, nogil=True)
def list_lengths_of_numbers(values, start, rows, is_list):
    """Return the list lengths [rows, lists], given the numbers in an ASCII file; see `list_lengths`."""
    out = np.zeros((rows, is_list.sum()), dtype=np.int64)
    at, end = start, len(values)
    for row in range(rows):
        column = 0
        for k in range(len(is_list)):
            number = 1
            if is_list[k]:
                if at >= end or not 0 <= values[at] <= end:
                    return out[:row]
                number = int(values[at])
                out[row, column] = number
                column += 1
                at += 1
            at += number
            if at > end:
                return out[:row]
    return out
