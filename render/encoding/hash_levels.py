"""The levels of the hash encoding, as all its implementations see them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GridLevel:
    """One level: cells an axis, its rows [offset, offset + entries) of the table, dense or hashed."""

    resolution: int
    offset: int
    entries: int
    dense: bool


def grid_levels(levels: int, log2_entries: int, coarsest: int, finest: int) -> tuple[GridLevel, ...]:
    """The levels from coarsest to finest; the first and last have exactly these resolutions."""
    result, offset = [], 0
    for level in range(levels):
        exponent = level / (levels - 1) if levels > 1 else 0.0
        resolution = round(coarsest * (finest / coarsest) ** exponent)
        vertices, capacity = (resolution + 1) ** 3, 1 << log2_entries
        entries = min(vertices, capacity)
        result.append(GridLevel(resolution, offset, entries, dense=vertices <= capacity))
        offset += entries
    return tuple(result)
