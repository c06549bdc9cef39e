"""Triangle meshes from files: OBJ by obj_reader, PLY, STL, GLB, glTF and OFF through trimesh."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.mesh_io.read_obj import read_obj

logger = logging.getLogger(__name__)

TRIMESH_FORMATS = (".ply", ".stl", ".glb", ".gltf", ".off")
LARGEST = 1e9
# glTF may promise numbers without holding them (they are zeros, or Draco's): more of them are a trap.
MOST_PROMISED = 2**26


@dataclass(frozen=True)
class MeshFile:
    """All triangles of a file, as one mesh, float32 and int64 on the CPU.

    Equal positions are one vertex, also where the file splits them along uv seams or holds a triangle soup.
    uv [U,2] with (0,0) at the top left of the texture and uv_faces [F,3] are None unless every face has uv;
    a uv vertex belongs to one position, a position has as many as charts meet there.
    """

    v_pos: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    uv: Float[Tensor, "U 2"] | None = None
    uv_faces: Int[Tensor, "F 3"] | None = None


def load_mesh(path: str | Path) -> MeshFile:
    """Read a mesh file, its objects and materials merged, polygons cut into triangles.

    Faces that use a position twice and vertices that no face uses are dropped. Raises FileNotFoundError, or
    ValueError naming the file and its fault: unknown format, empty, unreadable, NaN, infinite or huge
    positions, indices out of range, no faces, none with an area.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"mesh file {path}: there is no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"mesh file {path}: the file is empty")
    suffix = path.suffix.lower()
    if suffix == ".obj":
        v_pos, faces, uv, uv_faces = read_obj(path)
    elif suffix in TRIMESH_FORMATS:
        v_pos, faces, uv, uv_faces = _read_trimesh(path)
    else:
        known = ", ".join((".obj", *TRIMESH_FORMATS))
        raise ValueError(f"mesh file {path}: unknown format '{suffix}', use one of {known}")
    _check(path, v_pos, faces)
    return _clean(path, v_pos, faces, uv, uv_faces)


def _read_trimesh(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Positions, faces, uv and uv faces of all meshes of a file, placed as its scene says."""
    import trimesh

    try:
        if path.suffix.lower() in (".glb", ".gltf"):
            _check_promises(path.read_bytes())
        loaded = trimesh.load_scene(path, process=False)
        parts = [part for part in loaded.dump() if isinstance(part, trimesh.Trimesh)]
    # Loaders fail in their own ways on broken files; to the user each of them is an unreadable file.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"mesh file {path}: cannot be read as {path.suffix[1:]} ({reason})") from error
    if not parts:
        raise ValueError(f"mesh file {path}: it holds no faces")
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts)])[:-1]
    v_pos = np.concatenate([np.asarray(part.vertices, dtype=np.float64) for part in parts])
    for part in parts:
        _check(path, np.asarray(part.vertices), np.asarray(part.faces))
    faces = np.concatenate(
        [np.asarray(part.faces, dtype=np.int64) + start for part, start in zip(parts, offsets, strict=True)]
    )
    uvs = [getattr(part.visual, "uv", None) for part in parts]
    if any(uv is None or len(uv) != len(part.vertices) for uv, part in zip(uvs, parts, strict=True)):
        return v_pos, faces, None, None
    # trimesh measures v upwards for every format.
    uv = np.concatenate(uvs).astype(np.float64) * [1, -1] + [0, 1]
    return v_pos, faces, uv, faces


def _check_promises(content: bytes) -> None:
    """Refuse a glTF whose accessors would fill the memory though the file is small."""
    if content[:4] == b"glTF":
        # 12 bytes of header, then the length of the first chunk, which is the JSON, and its type.
        content = content[20 : 20 + int.from_bytes(content[12:16], "little")]
    accessors = json.loads(content).get("accessors", ())
    promised = sum(entry["count"] for entry in accessors if "bufferView" not in entry or "sparse" in entry)
    if promised > MOST_PROMISED:
        raise ValueError(f"its accessors count {promised:,} elements that it does not hold")


def _check(path: Path, v_pos: np.ndarray, faces: np.ndarray) -> None:
    if len(v_pos) == 0:
        raise ValueError(f"mesh file {path}: it holds no vertices")
    if len(faces) == 0:
        raise ValueError(f"mesh file {path}: it holds no faces")
    # Beyond LARGEST areas overflow; NaN is not below it either.
    broken = ~(np.abs(v_pos) <= LARGEST).all(-1)
    if broken.any():
        raise ValueError(
            f"mesh file {path}: vertex {int(broken.argmax()) + 1} has a position that is NaN, infinite or "
            f"beyond {LARGEST:g}"
        )
    if faces.min() < 0 or faces.max() >= len(v_pos):
        raise ValueError(
            f"mesh file {path}: face indices {faces.min()} … {faces.max()} are out of range, "
            f"there are {len(v_pos)} vertices"
        )


def _clean(
    path: Path, v_pos: np.ndarray, faces: np.ndarray, uv: np.ndarray | None, uv_faces: np.ndarray | None
) -> MeshFile:
    """Weld equal positions, drop faces that collapse by it, then vertices and uv without a face."""
    positions, welded = np.unique(v_pos.astype(np.float32), axis=0, return_inverse=True)
    faces = welded.reshape(-1)[faces]
    whole = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    a, b, c = (positions[faces[:, corner]].astype(np.float64) for corner in range(3))
    if not np.cross(b - a, c - a)[whole].any():
        raise ValueError(f"mesh file {path}: all its faces are degenerate")
    if not whole.all():
        logger.info("mesh file %s: %d degenerate faces dropped", path, int((~whole).sum()))
    v_pos, faces = _referenced(positions, faces[whole])
    if uv is None or not np.isfinite(uv).all():
        return MeshFile(torch.from_numpy(v_pos), torch.from_numpy(faces))
    uv, uv_faces = _uv_of_positions(faces, uv.astype(np.float32), uv_faces[whole])
    return MeshFile(*(torch.from_numpy(part) for part in (v_pos, faces, uv, uv_faces)))


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
