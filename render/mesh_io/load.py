"""Loading of mesh files. Each format has a reader. All steps after the reader are the same for all formats.

To add a format, write a function in a new file that maps a path to `Polygons` and raises `FileError`. Then
add the function to READERS.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.mesh_io.polygons import Polygons, points_only, repeated, triangulate
from render.mesh_io.read_gltf import read_gltf
from render.mesh_io.read_obj import read_obj
from render.mesh_io.read_off import read_off
from render.mesh_io.read_ply import read_ply
from render.mesh_io.read_stl import read_stl
from render.mesh_io.structure import Structure, single_part
from render.read_errors import FileError, printable, reading

logger = logging.getLogger(__name__)

READERS: dict[str, Callable[[Path], Polygons]] = {
    ".obj": read_obj,
    ".ply": read_ply,
    ".stl": read_stl,
    ".glb": read_gltf,
    ".gltf": read_gltf,
    ".off": read_off,
}
LARGEST = 1e9
# The maximum ratio of a mesh's distance from 0 to its size. A mesh with a larger ratio gets another origin,
# because more than 8 of the 24 bits of float32 would be lost.
FAR = 256


@dataclass(frozen=True)
class MeshFile:
    """All triangles of a file as one mesh on the CPU.

    Equal positions are merged into one vertex, even if the file splits vertices along uv seams or contains
    unconnected triangles. face_part: the index of each face's part in `structure`, or None if the format has
    no parts. v_pos: positions relative to `origin`. The origin is 0 unless the mesh is so far away from 0
    that float32 positions would be too coarse. uv [U,2], uv_faces [F,3]: texture coordinates with (0,0) at
    the top left of the texture. Both are None unless every face has uv. Each uv vertex belongs to one
    position. A position on a seam has one uv vertex per chart.
    """

    v_pos: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    uv: Float[Tensor, "U 2"] | None = None
    uv_faces: Int[Tensor, "F 3"] | None = None
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    structure: Structure = field(default_factory=lambda: single_part(False))
    face_part: Int[Tensor, " F"] | None = None


def load_mesh(path: str | Path, partial_uv: bool = False) -> MeshFile:
    """Read all objects and materials of a mesh file as one triangle mesh.

    Polygons are divided into triangles. Faces that contain a position twice, faces with the same positions as
    an earlier face, and unused vertices are removed. partial_uv: whether to keep texture coordinates if only
    some parts have them. The other parts then get the coordinates 0 and `has_uv` = False.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the format is unknown, the file is empty or unreadable, positions are NaN, infinite or
        huge, indices are out of range, or there are no faces with an area. The message contains the file and
        the fault.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(printable(f"mesh file {path}: there is no such file"))
    suffix = path.suffix.lower()
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise ValueError(printable(f"mesh file {path}: unknown format '{suffix}', use one of {known}"))
    with reading(path, "mesh file", suffix[1:]):
        if path.stat().st_size == 0:
            raise FileError("the file is empty")
        polygons = READERS[suffix](path)
        _check(polygons)
        return _clean(path, polygons, partial_uv)


def vertices_of_file(path: str | Path, mesh: MeshFile) -> Int[np.ndarray, " N"]:
    """Return, for each vertex that the reader of the format returns, the row of the vertex in `mesh.v_pos`,
    or −1 for a vertex that no triangle uses.

    mesh: the result of `load_mesh(path)`.
    """
    path = Path(path)
    polygons = READERS[path.suffix.lower()](path)
    positions, welded = _weld(_centred(polygons.v_pos)[0])
    # Both arrays have the same sort order, and mesh.v_pos is a subset of `positions`. The row of a used
    # position in mesh.v_pos is therefore the number of used positions before it.
    kinds = [np.ascontiguousarray(values).view("S12")[:, 0] for values in (positions, mesh.v_pos.numpy())]
    used = np.isin(*kinds)
    return np.where(used, np.cumsum(used) - 1, -1)[welded]


def _check(polygons: Polygons) -> None:
    if len(polygons.v_pos) == 0:
        raise FileError("it holds no vertices")
    if len(polygons.sizes) == 0:
        raise points_only(len(polygons.v_pos))
    # Positions beyond LARGEST are rejected, because areas would overflow. The comparison is false for NaN, so
    # NaN is also rejected.
    broken = ~(np.abs(polygons.v_pos) <= LARGEST).all(-1)
    if broken.any():
        vertex = int(broken.argmax()) + 1
        raise FileError(f"vertex {vertex} has a position that is NaN, infinite or beyond {LARGEST:g}")
    count, corners = len(polygons.v_pos), polygons.corners
    if len(corners) and (corners.min() < 0 or corners.max() >= count):
        raise FileError(
            f"face indices {corners.min()} … {corners.max()} are out of range, there are {count} vertices"
        )


def _clean(path: Path, polygons: Polygons, partial_uv: bool) -> MeshFile:
    """Merge equal positions, remove repeated polygons, triangulate, and remove degenerate triangles and
    unused vertices.
    """
    v_pos, origin = _centred(polygons.v_pos)
    positions, welded = _weld(v_pos)
    polygons = replace(polygons, v_pos=positions.astype(np.float64), corners=welded[polygons.corners])
    polygons, again = _without_repeated(polygons)
    triangles = triangulate(polygons)
    faces = polygons.corners[triangles]
    kept = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    a, b, c = (positions[faces[:, corner]].astype(np.float64) for corner in range(3))
    if not np.cross(b - a, c - a)[kept].any():
        raise FileError("all its faces are degenerate")
    if dropped := int((~kept).sum()):
        logger.info("mesh file %s: %d degenerate faces dropped", path, dropped)
    if again:
        logger.info("mesh file %s: %d faces dropped that repeat another face's positions", path, again)
    v_pos, faces = _referenced(positions, faces[kept])
    face_part, structure = polygons.parts_of_triangles(), polygons.structure
    face_part = None if face_part is None else face_part[kept]
    if partial_uv:
        polygons, structure = _zero_where_missing(polygons, structure)
    if polygons.uv is None or not np.isfinite(polygons.uv).all():
        uv = uv_faces = None
    else:
        uv_faces = polygons.uv_corners[triangles[kept]]
        uv, uv_faces = _uv_of_positions(faces, polygons.uv.astype(np.float32), uv_faces)
    arrays = (v_pos, faces, uv, uv_faces)
    tensors = (None if array is None else torch.from_numpy(array) for array in arrays)
    return MeshFile(
        *tensors,
        origin,
        structure or single_part(uv is not None),
        None if face_part is None else torch.from_numpy(face_part),
    )


def _zero_where_missing(polygons: Polygons, structure: Structure | None) -> tuple[Polygons, Structure | None]:
    """Set texture coordinates to 0 and `has_uv` to False in each part that has corners without
    coordinates.
    """
    if polygons.uv is None or structure is None:
        return polygons, structure and replace(
            structure, parts=tuple(replace(part, has_uv=False) for part in structure.parts)
        )
    finite = np.isfinite(polygons.uv).all(-1)
    owner = np.repeat(polygons.parts, polygons.sizes)
    incomplete = np.zeros(len(structure.parts), dtype=bool)
    incomplete[owner[~finite[polygons.uv_corners]]] = True
    parts = tuple(
        replace(part, has_uv=part.has_uv and not missing)
        for part, missing in zip(structure.parts, incomplete, strict=True)
    )
    if not incomplete.any():
        return polygons, structure
    uv = np.concatenate([np.where(finite[:, None], polygons.uv, 0), np.zeros((1, 2))])
    corners = np.where(incomplete[owner], len(uv) - 1, polygons.uv_corners)
    return replace(polygons, uv=uv, uv_corners=corners), replace(structure, parts=parts)


def _centred(v_pos: Float[np.ndarray, "V 3"]) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return positions relative to an origin as float32, and the origin.

    The origin is the centre of the bounding box if this centre is far from 0 compared with the size of the
    box. Otherwise the origin is 0.
    """
    low, high = v_pos.min(0), v_pos.max(0)
    middle = (low + high) / 2
    if np.abs(middle).max() <= FAR * max((high - low).max(), 1e-30):
        return v_pos.astype(np.float32), (0.0, 0.0, 0.0)
    return (v_pos - middle).astype(np.float32), tuple(float(value) for value in middle)


def _weld(v_pos: Float[np.ndarray, "V 3"]) -> tuple[Float[np.ndarray, "P 3"], Int[np.ndarray, " V"]]:
    """Return the unique positions, sorted, and for each vertex the index of its position."""
    # The addition of 0 changes −0 to 0. This is necessary, because `vertices_of_file` compares the bytes of
    # positions.
    v_pos = v_pos + np.float32(0)
    order = np.lexsort(v_pos.T[::-1])
    in_order = v_pos[order]
    first = np.ones(len(v_pos), dtype=bool)
    first[1:] = (in_order[1:] != in_order[:-1]).any(-1)
    number = np.empty(len(v_pos), dtype=np.int64)
    number[order] = np.cumsum(first) - 1
    return in_order[first], number


def _without_repeated(polygons: Polygons) -> tuple[Polygons, int]:
    found = repeated(polygons)
    return polygons.select(~found), int(found.sum())


def _uv_of_positions(
    faces: np.ndarray, uv: np.ndarray, uv_faces: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return uv and uv_faces with one uv vertex for each unique pair (position, uv)."""
    values, welded = np.unique(uv, axis=0, return_inverse=True)
    keys, uv_faces = np.unique(faces * len(values) + welded.reshape(-1)[uv_faces], return_inverse=True)
    return np.ascontiguousarray(values[keys % len(values)]), uv_faces.reshape(-1, 3).astype(np.int64)


def _referenced(values: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    used = np.zeros(len(values), dtype=bool)
    used[faces] = True
    renumbered = np.cumsum(used, dtype=np.int64) - 1
    return np.ascontiguousarray(values[used]), renumbered[faces]
