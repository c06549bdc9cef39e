"""Rectangles on the shelves of a square, all enlarged by the same factor, as large as it goes."""

import numpy as np
from jaxtyping import Float, Int

# The share of its place's side that a chart of mean size keeps beside its margins.
OWN_SHARE = 2 / 3
# How full shelves of rectangles sorted by height are, about.
FILL = 0.8


def affordable_padding(count: int, side: int, wanted: int) -> int:
    """Free texels around each of `count` charts: `wanted`, or fewer.

    A chart of mean size keeps OWN_SHARE of its place's side.
    """
    place = side * (FILL / max(count, 1)) ** 0.5
    return min(wanted, int(place * (1 - OWN_SHARE) / 2))


def pack(sizes: Float[np.ndarray, "N 2"], side: int, padding: int) -> tuple[float, Int[np.ndarray, "N 2"]]:
    """(scale, corners): rectangles of sizes · scale texels in a square of side² texels, none overlapping.

    sizes: width and height, best with width ≥ height. corners: the lower texel corner of each rectangle, with
    `padding` texels free on all its sides. A rectangle owns all texels that it touches. The same input gives
    the same output.
    """
    order = np.lexsort((-sizes[:, 0], -sizes[:, 1]))
    area = (sizes[:, 0] * sizes[:, 1]).sum()
    # Larger than any scale that fits, whatever is packed: the areas, and the longest side.
    most = min(side / np.sqrt(max(area, 1e-30)), side / max(sizes.max(), 1e-30))
    low, high, found = 0.0, most, _shelves(sizes[order], 0.0, side, padding)
    for _ in range(16):
        scale = (low + high) / 2
        corners = _shelves(sizes[order], scale, side, padding)
        if corners is None:
            high = scale
        else:
            low, found = scale, corners
    assert found is not None, f"{len(sizes)} places do not fit into {side}² texels"
    placed = np.empty((len(sizes), 2), np.int64)
    placed[order] = found
    return low, placed


def _shelves(sizes: np.ndarray, scale: float, side: int, padding: int) -> np.ndarray | None:
    """Corners of rectangles, sorted by falling height, on shelves; None where they do not fit."""
    texels = np.ceil(sizes * scale).astype(np.int64).clip(1) + 2 * padding
    ends = np.cumsum(texels[:, 0])
    if ends[-1] > side * side or texels.max() > side:
        return None
    corners = np.empty_like(texels)
    first, y = 0, 0
    while first < len(texels):
        start = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, start + side, side="right"))
        height = texels[first, 1]
        if y + height > side:
            return None
        corners[first:last, 0] = ends[first:last] - texels[first:last, 0] - start
        corners[first:last, 1] = y
        first, y = last, y + height
    return corners + padding
