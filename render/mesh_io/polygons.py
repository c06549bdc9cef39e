"""The polygons that the mesh readers return, and their triangulation."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from render.mesh_io.structure import Structure
from render.read_errors import FileError


@dataclass(frozen=True)
class Polygons:
    """The polygons of all objects of a mesh file, before the steps of `load_mesh` that merge, remove or
    divide them.

    corners: the position indices of all polygons, one polygon after the other. sizes: the number of corners
    of each polygon. uv: texture coordinates with (0,0) at the top left of the texture, NaN for corners
    without coordinates. uv_corners: the index into uv for each entry of `corners`. uv and uv_corners are None
    if no corner has texture coordinates. parts: the index of each polygon's part in `structure`. parts and
    structure are None if the format has no parts.
    """

    v_pos: Float[np.ndarray, "V 3"]
    corners: Int[np.ndarray, " C"]
    sizes: Int[np.ndarray, " P"]
    uv: Float[np.ndarray, "U 2"] | None = None
    uv_corners: Int[np.ndarray, " C"] | None = None
    parts: Int[np.ndarray, " P"] | None = None
    structure: Structure | None = None

    @staticmethod
    def of_triangles(v_pos: np.ndarray, faces: np.ndarray) -> "Polygons":
        """Return the polygons of a triangle mesh without texture coordinates."""
        corners = np.ascontiguousarray(faces, dtype=np.int64).reshape(-1)
        return Polygons(v_pos, corners, np.full(len(faces), 3, dtype=np.int64))

    def select(self, kept: Bool[np.ndarray, " P"]) -> "Polygons":
        """Return the selected polygons. All positions are kept."""
        if kept.all():
            return self
        corners = np.repeat(kept, self.sizes)
        uv_corners = None if self.uv_corners is None else self.uv_corners[corners]
        parts = None if self.parts is None else self.parts[kept]
        return replace(
            self,
            corners=self.corners[corners],
            sizes=self.sizes[kept],
            uv_corners=uv_corners,
            parts=parts,
        )

    def parts_of_triangles(self) -> Int[np.ndarray, " T"] | None:
        """Return the index of the part of each triangle, in the order of `triangulate`."""
        return None if self.parts is None else np.repeat(self.parts, np.maximum(self.sizes - 2, 0))


def points_only(count: int, what: str = "points") -> FileError:
    """Return the error for a file that contains points but no faces."""
    return FileError(
        f"it holds {count} {what} and no faces; make a surface of it first (for example in MeshLab: Filters, "
        "Remeshing, Screened Poisson Surface Reconstruction)"
    )


def repeated(polygons: Polygons) -> Bool[np.ndarray, " P"]:
    """Return which polygons have the same positions as an earlier polygon, in any order.

    Equal positions must already share one index.
    """
    found = np.zeros(len(polygons.sizes), dtype=bool)
    starts = np.cumsum(polygons.sizes) - polygons.sizes
    for size in np.unique(polygons.sizes):
        which = np.flatnonzero(polygons.sizes == size)
        rows = np.sort(polygons.corners[starts[which][:, None] + np.arange(size)], axis=1)
        found[which] = _repeated_rows(rows)
    return found


def _repeated_rows(rows: Int[np.ndarray, "N K"]) -> Bool[np.ndarray, " N"]:
    """Return which rows are equal to an earlier row. The rows are sorted by a hash, so that equal rows are
    adjacent.
    """
    key = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.T:
        key = (key ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    order = np.argsort(key, kind="stable")
    same = np.zeros(len(rows), dtype=bool)
    same[1:] = (key[order[1:]] == key[order[:-1]]) & (rows[order[1:]] == rows[order[:-1]]).all(1)
    found = np.zeros(len(rows), dtype=bool)
    found[order] = same
    return found


def triangulate(polygons: Polygons) -> Int[np.ndarray, "T 3"]:
    """Divide each polygon of n corners into n − 2 triangles.

    Returns indices into `corners`, in the order of the polygons. Triangles are unchanged. A quadrilateral is
    divided along the diagonal for which both triangles face the same way as the quadrilateral. If this holds
    for both diagonals or for none, the diagonal from the first to the third corner is used. Larger polygons
    are divided by ear clipping (see `render/mesh_io/ear_clipping.py`). Polygons with fewer than 3 corners are
    ignored.

    Raises:
        FileError: if the division of a polygon takes too long.
    """
    sizes = polygons.sizes
    starts = np.cumsum(sizes) - sizes
    counts = np.maximum(sizes - 2, 0)
    firsts = np.cumsum(counts) - counts
    out = np.empty((int(counts.sum()), 3), dtype=np.int64)
    three, four, more = (np.flatnonzero(sizes == 3), np.flatnonzero(sizes == 4), np.flatnonzero(sizes > 4))
    out[firsts[three]] = starts[three, None] + np.arange(3)
    if len(four):
        second = _second_diagonal(polygons.v_pos[polygons.corners[starts[four, None] + np.arange(4)]])
        order = np.where(second[:, None], [0, 1, 3, 1, 2, 3], [0, 1, 2, 0, 2, 3])
        out[firsts[four]] = starts[four, None] + order[:, :3]
        out[firsts[four] + 1] = starts[four, None] + order[:, 3:]
    if len(more):
        places, triangles = _divide_large(polygons, starts[more], sizes[more])
        rows = np.repeat(firsts[more], counts[more]) + ranges(counts[more])
        out[rows] = places[triangles]
    return out


def ranges(counts: Int[np.ndarray, " N"]) -> Int[np.ndarray, " C"]:
    """Return the concatenation of the ranges 0, …, count − 1 for all counts."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)


def _divide_large(
    polygons: Polygons, starts: Int[np.ndarray, " P"], sizes: Int[np.ndarray, " P"]
) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, "T 3"]]:
    """Divide the polygons with the given starts and sizes. Each polygon has more than 4 corners.

    Returns the corners of the polygons as indices into `corners`, and the triangles as indices into the first
    result.
    """
    from render.mesh_io.ear_clipping import clip_ears

    places = np.repeat(starts, sizes) + ranges(sizes)
    packed = np.cumsum(sizes) - sizes
    points = _project(polygons.v_pos[polygons.corners[places]], packed, sizes)
    triangles, complete = clip_ears(points, packed, sizes)
    if complete < len(sizes):
        raise FileError(
            f"a polygon of {int(sizes[complete]):,} corners is too complex to be divided into "
            "triangles; triangulate the mesh in the program that wrote it"
        )
    return places, triangles


def _project(
    points: Float[np.ndarray, "C 3"], starts: Int[np.ndarray, " P"], sizes: Int[np.ndarray, " P"]
) -> Float[np.ndarray, "C 2"]:
    """Project each polygon onto the plane of its mean normal (Newell), and scale it to unit size."""
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    scale = np.maximum((high - low).max(1), 1e-300)
    local = (points - np.repeat(points[starts], sizes, axis=0)) / np.repeat(scale, sizes)[:, None]
    following = np.arange(len(points)) + 1
    following[starts + sizes - 1] = starts
    normal = np.add.reduceat(np.cross(local, local[following]), starts)
    length = np.linalg.norm(normal, axis=1)
    # If the mean normal of a polygon is 0, the polygon is projected along the shortest side of its box.
    normal[length < 1e-15] = np.eye(3)[(high - low)[length < 1e-15].argmin(1)]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    # u is computed from the coordinate axis with the largest angle to the normal, so that the projection is
    # exact for polygons in coordinate planes.
    u = np.eye(3)[np.abs(normal).argmin(1)]
    u -= np.vecdot(normal, u)[:, None] * normal
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = np.cross(normal, u)
    return np.stack([np.vecdot(local, np.repeat(axis, sizes, axis=0)) for axis in (u, v)], -1)


def _second_diagonal(corners: Float[np.ndarray, "Q 4 3"]) -> Bool[np.ndarray, " Q"]:
    """Return which quadrilaterals must be divided from the second to the fourth corner."""
    a, b, c, d = (corners[:, k] for k in range(4))
    ac, bd = c - a, d - b
    normal = np.cross(ac, bd)
    # For each of the four possible triangles, the value is twice the area of the triangle times |normal|. The
    # value is positive if the triangle faces the same way as the quadrilateral.
    abc, acd = (np.vecdot(np.cross(b - a, ac), normal), np.vecdot(np.cross(ac, d - a), normal))
    abd, bcd = (np.vecdot(np.cross(b - a, d - a), normal), np.vecdot(np.cross(c - b, bd), normal))
    least = 1e-12 * np.vecdot(normal, normal)
    return (np.minimum(abc, acd) <= least) & (np.minimum(abd, bcd) > least)
