"""Limits for the size of pictures."""

from render.read_errors import FileError

MOST_PIXELS = 2**27
# A byte of a run-length encoded file represents at most 16 pixels. Pictures of up to FREE_PIXELS pixels are
# not compared with the file size.
PIXELS_PER_BYTE, FREE_PIXELS = 16, 2**24


def check_size(width: int, height: int, file_bytes: int) -> None:
    """Reject a picture that has too many pixels, or more pixels than a file of this size can contain.

    Raises:
        FileError: if the picture is rejected. The message contains the size.
    """
    pixels = width * height
    if pixels > MOST_PIXELS:
        raise FileError(f"it is {width} x {height} pixels; at most 16384 x 8192 are read: scale it down")
    if pixels > max(FREE_PIXELS, PIXELS_PER_BYTE * file_bytes):
        raise FileError(
            f"its header promises {width} x {height} pixels, and the file has {file_bytes:,} bytes; "
            "it is cut short or damaged"
        )
