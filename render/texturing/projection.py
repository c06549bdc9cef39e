"""UV unwrapping by projection. It works for any triangle mesh in time linear in the number of faces.

The projection is used for surfaces on which xatlas and uvunwrap fail or take too long. These are torn or
noisy surfaces with thousands of components. A chart is a patch of faces with similar normals, projected onto
a plane (projection_numba.py). The charts are packed in rows in the texture. The result has more seams than
that of xatlas or uvunwrap. A face at an angle a to its chart's direction gets only cos a times as many texels
as a face at angle 0.
"""

import math
from types import ModuleType

import numpy as np
from jaxtyping import Float, Int

from render.kernels.available import numba_module

# The minimum cosine between a face's normal and its chart's direction. It allows an angle of 60 degrees, at
# which a face gets half as much texture area as at angle 0.
MIN_COSINE = 0.5
# Charts with at most this many faces are fragments. Their faces are moved to larger charts. For this, the
# angle between a face's normal and the larger chart's direction may be up to 81 degrees.
MAX_FRAGMENT_FACES, FRAGMENT_MIN_COSINE = 8, 0.15
# The number of rounds in which normals are averaged over neighbours before they are used as chart directions.
SMOOTHING_ROUNDS = 4
# The number of rotations within a quarter turn that are tested to find the smallest bounding rectangle of a
# chart.
ROTATIONS = 12

# Padding is limited so that a chart of mean size keeps at least this share of the side of its cell (the chart
# with its padding).
CHART_SHARE = 2 / 3
# The approximate share of the texture that rectangles fill if they are sorted by height and packed in rows.
FILL = 0.8


def compiled_kernels() -> ModuleType | None:
    """Return the module projection_numba, or None if numba is missing or unusable."""
    return numba_module("render.texturing.projection_numba", "projection unwrapping is not available")


def project(
    positions: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], side: int, padding: int
) -> tuple[Float[np.ndarray, "U 2"], Int[np.ndarray, "F 3"], int, int]:
    """Return (uv, uv_faces, number of charts, padding). In uv, faces are counter-clockwise and do not
    overlap.

    positions: in [0,1]. uv: in [0,1] with v upward. The texture has side² texels. The padding is reduced if
    margins would cover more area than the charts. A face without area is mapped to one point of a neighbour.
    Numba is required (see `compiled_kernels`).
    """
    projection_numba = compiled_kernels()
    assert projection_numba is not None and len(faces) > 0, "nothing to unwrap, or nothing to unwrap with"
    positions = np.ascontiguousarray(positions, np.float64)
    normals, areas = face_normals(positions, faces)
    neighbours = face_neighbours(faces, len(positions))
    directions, sizes = _chart_directions(positions, faces, normals, areas, neighbours)
    seeds = np.argsort(-areas, kind="stable")
    chart_of, corners = projection_numba.make_charts(
        positions,
        faces,
        normals,
        directions,
        sizes,
        neighbours,
        seeds,
        MIN_COSINE,
        MAX_FRAGMENT_FACES,
        FRAGMENT_MIN_COSINE,
    )
    charts = _renumber_charts(chart_of)
    if charts == 0:
        # No face has an area, so all faces are mapped to one point.
        everywhere = np.full((len(positions), 2), 0.5, np.float32)
        return everywhere, faces.astype(np.int64), 0, padding
    flat = corners.reshape(-1, 3, 2) / projection_numba.LATTICE
    flat, sizes = _rotate_to_rectangles(flat, chart_of, charts)
    padding = affordable_padding(charts, side, padding)
    # If the texture has fewer than four texels per chart, the charts are packed into a larger square, which
    # is scaled down to the texture, so several charts share a texel.
    side = max(side, math.ceil(2 * charts**0.5))
    scale, places = pack_rectangles(sizes, side, padding)
    placed = (flat * scale + places[chart_of][:, None]) / side
    uv, uv_faces = _index_uv(placed, faces, chart_of, len(positions))
    return uv, uv_faces, charts, padding


def face_normals(positions: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return unit normals [F,3] (zero for faces without area) and areas [F]."""
    a, b, c = (positions[faces[:, corner]].astype(np.float64) for corner in range(3))
    cross = np.cross(b - a, c - a)
    length = np.linalg.norm(cross, axis=1)
    return cross / np.maximum(length, 1e-300)[:, None], length / 2


def face_neighbours(faces: Int[np.ndarray, "F 3"], vertices: int) -> Int[np.ndarray, "F 3"]:
    """Return the face across each edge, −1 if the edge does not have exactly two faces.

    Edge k of a face is the edge between its corners k and k + 1.
    """
    start, end = faces.reshape(-1).astype(np.int64), np.roll(faces, -1, axis=1).reshape(-1).astype(np.int64)
    key = np.minimum(start, end) * vertices + np.maximum(start, end)
    order = np.argsort(key, kind="stable")
    key = key[order]
    same = np.concatenate([[False], key[1:] == key[:-1], [False]])
    # Select the first half-edge of each edge that has exactly two half-edges.
    pair = np.flatnonzero(same[1:-1] & ~same[:-2] & ~same[2:])
    across = np.full(len(order), -1, np.int64)
    across[order[pair]] = order[pair + 1] // 3
    across[order[pair + 1]] = order[pair] // 3
    return across.reshape(-1, 3)


def folded_edges(positions: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> int:
    """Return the number of edges between two faces whose normals differ by more than 60 degrees."""
    normals, _ = face_normals(positions, faces)
    neighbours = face_neighbours(faces, len(positions))
    cosine = np.einsum("fi,fki->fk", normals, normals[neighbours])
    return int((cosine[neighbours >= 0] < 0.5).sum()) // 2


def _chart_directions(positions, faces, normals, areas, neighbours) -> tuple[np.ndarray, np.ndarray]:
    """Return for each face the projection direction [F,3] of a chart that starts at this face, and the mean
    extent [F] of the faces around this face.
    """
    weighted = np.concatenate([normals * areas[:, None], np.zeros((1, 3))])
    corners = positions[faces]
    extent = np.concatenate([(corners.max(1) - corners.min(1)).max(1)[:, None], [[0.0]]])
    count = np.concatenate([np.ones((len(faces), 1)), [[0.0]]])
    for _ in range(SMOOTHING_ROUNDS):
        # The index −1 selects the last row, which is zero, so missing neighbours add nothing.
        for values in (weighted, extent, count):
            values[:-1] += values[neighbours].sum(1)
    mean = weighted[:-1] / np.maximum(np.linalg.norm(weighted[:-1], axis=1), 1e-300)[:, None]
    agrees = (mean * normals).sum(1) > 0.5
    return np.where(agrees[:, None], mean, normals), (extent[:-1] / count[:-1])[:, 0]


def _renumber_charts(chart_of: Int[np.ndarray, " F"]) -> int:
    """Renumber the charts that have faces as 0, 1, … in place. Returns the number of these charts."""
    inside = chart_of >= 0
    left, number = np.unique(chart_of[inside], return_inverse=True)
    chart_of[inside] = number
    return len(left)


def _rotate_to_rectangles(
    flat: Float[np.ndarray, "F 3 2"], chart_of: Int[np.ndarray, " F"], charts: int
) -> tuple[Float[np.ndarray, "F 3 2"], Float[np.ndarray, "C 2"]]:
    """Rotate each chart so that its bounding rectangle is smallest and wider than high. Move the lower left
    corner of the rectangle to (0, 0).

    Returns the moved corners and the sizes of the rectangles.
    """
    inside = np.flatnonzero(chart_of >= 0)
    order = inside[np.argsort(chart_of[inside], kind="stable")]
    starts = np.searchsorted(chart_of[order], np.arange(charts)) * 3
    points = flat[order].reshape(-1, 2)
    best, angle, wide = np.full(charts, np.inf), np.zeros(charts), np.zeros(charts, bool)
    for turn in np.arange(ROTATIONS) * (np.pi / 2 / ROTATIONS):
        x = points @ [np.cos(turn), -np.sin(turn)]
        y = points @ [np.sin(turn), np.cos(turn)]
        width = np.maximum.reduceat(x, starts) - np.minimum.reduceat(x, starts)
        height = np.maximum.reduceat(y, starts) - np.minimum.reduceat(y, starts)
        better = width * height < best
        best = np.where(better, width * height, best)
        angle = np.where(better, turn, angle)
        wide = np.where(better, width >= height, wide)
    angle = np.where(wide, angle, angle + np.pi / 2)
    cosine, sine = np.cos(angle)[chart_of][:, None], np.sin(angle)[chart_of][:, None]
    turned = np.stack(
        [flat[..., 0] * cosine - flat[..., 1] * sine, flat[..., 0] * sine + flat[..., 1] * cosine], -1
    )
    points = turned[order].reshape(-1, 2)
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    return turned - low[chart_of][:, None], high - low


def _index_uv(
    placed: Float[np.ndarray, "F 3 2"], faces: np.ndarray, chart_of: np.ndarray, vertices: int
) -> tuple[Float[np.ndarray, "U 2"], Int[np.ndarray, "F 3"]]:
    """Return uv and uv_faces with one uv vertex for each pair of position and chart. A face without a chart
    is mapped to a point of a neighbour.
    """
    lost = np.flatnonzero(chart_of < 0)
    position_of = np.full((vertices, 2), np.nan)
    position_of[faces[chart_of >= 0].reshape(-1)] = placed[chart_of >= 0].reshape(-1, 2)
    corner = position_of[faces[lost]]
    known = np.isfinite(corner[..., 0])
    first = corner[np.arange(len(lost)), known.argmax(1)]
    placed[lost] = np.where(known.any(1)[:, None], first, 0.5)[:, None]
    owner = chart_of.copy()
    owner[lost] = chart_of.max() + 1 + np.arange(len(lost))
    key = (owner[:, None] * np.int64(vertices) + faces).reshape(-1)
    _, row, uv_faces = np.unique(key, return_index=True, return_inverse=True)
    return placed.reshape(-1, 2)[row].astype(np.float32), uv_faces.reshape(-1, 3).astype(np.int64)


def affordable_padding(count: int, side: int, wanted: int) -> int:
    """Return the padding in texels around each of `count` charts. It is at most `wanted`.

    With this padding, the side of a chart of mean size is at least CHART_SHARE of the side of its cell (the
    chart with its padding).
    """
    place = side * (FILL / max(count, 1)) ** 0.5
    return min(wanted, int(place * (1 - CHART_SHARE) / 2))


def pack_rectangles(
    sizes: Float[np.ndarray, "N 2"], side: int, padding: int
) -> tuple[float, Int[np.ndarray, "N 2"]]:
    """Pack rectangles of sizes · scale texels into a square of side² texels. Return (scale, corners).

    sizes: width and height. The packing is best for width ≥ height. corners: for each rectangle, the texel
    corner with the smallest coordinates. There are `padding` free texels on all sides of a rectangle.
    Rectangles do not overlap, and no two rectangles touch the same texel. The result is deterministic.
    """
    order = np.lexsort((-sizes[:, 0], -sizes[:, 1]))
    area = (sizes[:, 0] * sizes[:, 1]).sum()
    # The upper bound of the scale follows from the total area and the longest side.
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
    """Pack rectangles in rows in the given order, which is by decreasing height.

    Returns the corners of the rectangles, or None if they do not fit.
    """
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
