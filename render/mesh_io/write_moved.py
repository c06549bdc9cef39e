"""Write a mesh file with moved vertices. Faces, texture coordinates and materials do not change."""

import logging
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from render.image_io.atomic import write_bytes
from render.mesh import Mesh, smooth_normals
from render.mesh_io.load import MeshFile, load_mesh, vertices_of_file
from render.mesh_io.moved_gltf import moved_gltf
from render.mesh_io.moved_obj import copy_materials, moved_obj
from render.mesh_io.write_asset import write_asset

logger = logging.getLogger(__name__)


def write_moved(folder: Path, source: str | Path, shift: Float[Tensor, "V 3"]) -> None:
    """Write mesh.glb and mesh.obj to `folder`: the mesh of the file `source` with vertices moved by `shift`.

    If `source` is GLB/glTF or OBJ, the file in the same format is a copy in which only positions and normals
    differ. The other file contains the same faces and texture coordinates, but no materials. If `source` is
    neither GLB/glTF nor OBJ, both files contain no materials. shift: displacements in the order of
    `load_mesh(source).v_pos`, in the units of the file.
    """
    source = Path(source)
    file = load_mesh(source)
    write_asset(folder, moved_mesh(file, shift))
    kind = source.suffix.lower()
    if kind not in (".glb", ".gltf", ".obj"):
        return
    # A row of zeros is added for vertices that no triangle uses. Their index is −1, so they are not moved.
    v_pos, moves = (_with_zero(values) for values in (file.v_pos, shift))
    welded = vertices_of_file(source, file)
    if kind == ".obj":
        copy_materials(source, folder)
        write_bytes(folder / "mesh.obj", moved_obj(source, welded, v_pos, moves, _digits(file)))
        return
    content = moved_gltf(source, welded, v_pos, moves)
    if content is None:
        logger.warning(
            "%s draws one mesh at several places (EXT_mesh_gpu_instancing), which cannot move separately; "
            "mesh.glb is one mesh without the materials of the file",
            source,
        )
        return
    write_bytes(folder / "mesh.glb", content)


def moved_mesh(file: MeshFile, shift: Float[Tensor, "V 3"]) -> Mesh:
    """Return the mesh of a file with moved vertices and smooth normals. Faces and uv are those of the
    file.
    """
    v_pos = file.v_pos + shift.to(file.v_pos.dtype)
    normals = smooth_normals(v_pos, file.faces)
    if any(file.origin):
        v_pos = v_pos.double() + torch.tensor(file.origin, dtype=torch.float64)
    return Mesh(v_pos, file.faces, normals, file.uv, file.uv_faces)


def _with_zero(values: Float[Tensor, "V 3"]) -> Float[np.ndarray, "W 3"]:
    """Convert the rows to float64 and append a row of zeros."""
    return np.concatenate([values.double().numpy(), np.zeros((1, 3))])


def _digits(file: MeshFile) -> int:
    """Return the number of significant digits of a position. 9 digits distinguish all float32 values.
    Positions of a mesh far from 0 are in float64 and have 15 digits.
    """
    return 15 if any(file.origin) else 9
