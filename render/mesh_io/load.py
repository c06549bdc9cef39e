"""Mesh files: the reader of each format, and what is the same for all of them.

To add a format, write a function from a path to `Polygons` in a file of its own, which raises `FileError`,
and name it in READERS.
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
# Float32 has 24 bits. A mesh at a distance of this many times its size would lose 8 of them.
FAR = 256


@dataclass(frozen=True)
class MeshFile:
    """All triangles of a file, as one mesh on the CPU.

    Equal positions are one vertex, also if the file splits them along uv seams or holds a triangle soup.
    face_part is the part of `structure` that each face belongs to, None if the format has no parts. v_pos is
    relative to `origin`, which is 0 unless the mesh is so far from the origin that float32 would
    round it. uv [U,2] with (0,0) at the top left of the texture and uv_faces [F,3] are None unless every face
    has uv; a uv vertex belongs to one position, a position has as many as charts meet there.
    """

    v_pos: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    uv: Float[Tensor, "U 2"] | None = None
    uv_faces: Int[Tensor, "F 3"] | None = None
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    structure: Structure = field(default_factory=lambda: single_part(False))
    face_part: Int[Tensor, " F"] | None = None

    @property
    def has_own_appearance(self) -> bool:
        """Whether the format has parts and materials."""
        return self.face_part is not None


def load_mesh(path: str | Path, partial_uv: bool = False) -> MeshFile:
    """Read a mesh file as one mesh of all its objects and materials, polygons divided into triangles.

    Faces that use a position twice or repeat another face's positions, and vertices that no face uses, are
    dropped. partial_uv: keep the texture coordinates of the parts that have them; those of the other parts
    are 0, and their `has_uv` is False.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file and its fault: unknown format, empty, unreadable, NaN, infinite or huge
            positions, indices out of range, no faces, none with an area.
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
    """For each vertex of a file in the reader's order, its row in `mesh.v_pos`; −1 if no triangle uses it.

    mesh: the result of `load_mesh(path)`.
    """
    path = Path(path)
    polygons = READERS[path.suffix.lower()](path)
    positions, welded = _weld(_centred(polygons.v_pos)[0])
    # Both are sorted in the same way, and mesh.v_pos is a subset.
    kinds = [np.ascontiguousarray(values).view("S12")[:, 0] for values in (positions, mesh.v_pos.numpy())]
    used = np.isin(*kinds)
    return np.where(used, np.cumsum(used) - 1, -1)[welded]


def _check(polygons: Polygons) -> None:
    if len(polygons.v_pos) == 0:
        raise FileError("it holds no vertices")
    if len(polygons.sizes) == 0:
        raise points_only(len(polygons.v_pos))
    # Areas overflow beyond LARGEST. The comparison is also false for NaN.
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
    """Weld equal positions, drop repeated polygons, divide into triangles, drop degenerate ones and unused
    values."""
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
    """The polygons with texture coordinates 0 in every part that lacks some, and the structure that says
    so."""
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
    """Positions as float32, relative to the middle of their box if that is far away compared with its
    size."""
    low, high = v_pos.min(0), v_pos.max(0)
    middle = (low + high) / 2
    if np.abs(middle).max() <= FAR * max((high - low).max(), 1e-30):
        return v_pos.astype(np.float32), (0.0, 0.0, 0.0)
    return (v_pos - middle).astype(np.float32), tuple(float(value) for value in middle)


def _weld(v_pos: Float[np.ndarray, "V 3"]) -> tuple[Float[np.ndarray, "P 3"], Int[np.ndarray, " V"]]:
    """The different positions, sorted, and the number of each vertex's position."""
    # −0 equals 0.
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
    """One uv vertex for each different (position, uv) that occurs."""
    values, welded = np.unique(uv, axis=0, return_inverse=True)
    keys, uv_faces = np.unique(faces * len(values) + welded.reshape(-1)[uv_faces], return_inverse=True)
    return np.ascontiguousarray(values[keys % len(values)]), uv_faces.reshape(-1, 3).astype(np.int64)


def _referenced(values: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    used = np.zeros(len(values), dtype=bool)
    used[faces] = True
    renumbered = np.cumsum(used, dtype=np.int64) - 1
    return np.ascontiguousarray(values[used]), renumbered[faces]
