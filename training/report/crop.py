"""Crop pictures with white background to the object in them."""

import math
from collections.abc import Collection, Iterable

import numpy as np
from PIL import Image

# Left, top, right and bottom edge of a box as fractions of a view's size.
Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
# WHITE: a pixel is background if all channels are at least this value. A box is enlarged by MARGIN and
# rounded up to a multiple of 1 / STEPS, so that the box rarely changes between stills.
WHITE, MARGIN, STEPS = 250, 0.02, 24


def object_box(
    picture: Image.Image, columns: int = 1, rows: int = 1, used_rows: Collection[int] = (0,)
) -> Box | None:
    """Return the smallest box that contains the non-white pixels of all views, or None if all are white.

    picture: RGB, columns x rows views of the same size. used_rows: the indices of the rows that are searched.
    """
    inside = np.asarray(picture).min(-1) < WHITE
    height, width = inside.shape[0] // rows, inside.shape[1] // columns
    if not height or not width:
        return None
    views = inside[: height * rows, : width * columns].reshape(rows, height, columns, width)
    shown = views[list(used_rows)].any((0, 2))
    if not shown.any():
        return None
    (down,), (across,) = shown.any(1).nonzero(), shown.any(0).nonzero()
    return across[0] / width, down[0] / height, (across[-1] + 1) / width, (down[-1] + 1) / height


def joined(boxes: Iterable[Box | None]) -> Box:
    """Return the box around all boxes, with a margin, or WHOLE if there are no boxes."""
    found = [box for box in boxes if box is not None]
    if not found:
        return WHOLE
    left, top, right, bottom = zip(*found, strict=True)
    low = [math.floor(max(min(side) - MARGIN, 0.0) * STEPS) / STEPS for side in (left, top)]
    high = [math.ceil(min(max(side) + MARGIN, 1.0) * STEPS) / STEPS for side in (right, bottom)]
    return low[0], low[1], high[0], high[1]


def crop_view(picture: Image.Image, box: Box) -> Image.Image:
    """Crop one view to `box`."""
    left, top, right, bottom = (
        round(side * length) for side, length in zip(box, (*picture.size, *picture.size), strict=True)
    )
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def crop_cells(
    sheet: Image.Image, columns: int, rows: int, box: Box, maps: Collection[int] = ()
) -> Image.Image:
    """Crop every view of the sheet to `box`.

    maps: the indices of rows with one wide picture, which are scaled and not cropped.
    """
    width, height = sheet.width // columns, sheet.height // rows
    small = crop_view(Image.new("RGB", (width, height)), box).size
    cropped = Image.new("RGB", (small[0] * columns, small[1] * rows), "white")
    for row in range(rows):
        if row in maps:
            whole = sheet.crop((0, row * height, width * columns, (row + 1) * height))
            whole.thumbnail((cropped.width, small[1]), Image.Resampling.LANCZOS)
            cropped.paste(whole, (0, row * small[1]))
            continue
        for column in range(columns):
            corner = column * width, row * height
            view = sheet.crop((*corner, corner[0] + width, corner[1] + height))
            cropped.paste(crop_view(view, box), (column * small[0], row * small[1]))
    return cropped
