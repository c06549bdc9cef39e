"""The levels of the hash encoding, shared by all implementations."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GridLevel:
    """One level with `resolution` cells per axis. Its table rows have the indices offset to offset + entries
    − 1.

    dense: whether each vertex has its own row. Otherwise a hash of the vertex selects the row.
    """

    resolution: int
    offset: int
    entries: int
    dense: bool


def grid_levels(
    n_levels: int, log2_hashmap_size: int, base_resolution: int, max_resolution: int
) -> tuple[GridLevel, ...]:
    """Return the levels, coarsest first. The first and last level have exactly the given resolutions."""
    result, offset = [], 0
    for level in range(n_levels):
        exponent = level / (n_levels - 1) if n_levels > 1 else 0.0
        resolution = round(base_resolution * (max_resolution / base_resolution) ** exponent)
        vertices, capacity = (resolution + 1) ** 3, 1 << log2_hashmap_size
        entries = min(vertices, capacity)
        result.append(GridLevel(resolution, offset, entries, dense=vertices <= capacity))
        offset += entries
    return tuple(result)
