"""Write a mesh file again with moved vertices: faces, texture coordinates and materials do not change."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from render.mesh import Mesh, smooth_normals
from render.mesh_io.load import MeshFile, load_mesh
from render.mesh_io.write_asset import write_asset


def write_moved(folder: Path, source: str | Path, shift: Float[Tensor, "V 3"]) -> None:
    """mesh.glb and mesh.obj in `folder`: the mesh of the file `source` with its vertices moved by `shift`.

    shift: in the order of `load_mesh(source).v_pos`, in the units of the file.
    """
    write_asset(folder, moved_mesh(load_mesh(source), shift))


def moved_mesh(file: MeshFile, shift: Float[Tensor, "V 3"]) -> Mesh:
    """The mesh of a file with moved vertices, smooth normals and the faces and uv of the file."""
    v_pos = file.v_pos + shift.to(file.v_pos.dtype)
    normals = smooth_normals(v_pos, file.faces)
    if any(file.origin):
        v_pos = v_pos.double() + torch.tensor(file.origin, dtype=torch.float64)
    return Mesh(v_pos, file.faces, normals, file.uv, file.uv_faces)
