"""The mesh that the appearance stage paints: read from a file, its place and size kept."""

import logging
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.mesh import Mesh, face_cross, smooth_normals
from render.mesh_file import load_mesh

logger = logging.getLogger(__name__)


def load_fixed_mesh(path: str | Path) -> Mesh:
    """A mesh file as it is, with smooth normals; a closed mesh that is inside out gets its faces turned.

    uv and uv_faces are set where every face has uv, otherwise None: the caller judges or unwraps them, and
    computes the tangents.
    Raises FileNotFoundError or ValueError naming the file and its fault.
    """
    source = load_mesh(path)
    v_pos, faces, uv, uv_faces = source.v_pos, source.faces, source.uv, source.uv_faces
    if is_closed(faces) and signed_volume(v_pos, faces) < 0:
        logger.warning("mesh file %s: its faces point inwards; they are turned over", path)
        faces = faces.flip(-1)
        uv_faces = None if uv_faces is None else uv_faces.flip(-1)
    return Mesh(v_pos, faces, smooth_normals(v_pos, faces), uv, uv_faces)


def signed_volume(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> float:
    """Volume enclosed by a closed mesh, negative where its faces point inwards."""
    v_pos = v_pos.double() - v_pos.double().mean(0)
    return ((v_pos[faces[:, 0]] * face_cross(v_pos, faces)).sum() / 6).item()


def is_closed(faces: Int[Tensor, "F 3"]) -> bool:
    """Whether each directed edge occurs as often as its reverse: no boundary, neighbours turned alike."""
    start = faces.reshape(-1).long()
    end = faces.roll(-1, dims=1).reshape(-1).long()
    count = int(faces.max()) + 1
    forward, backward = start * count + end, end * count + start
    return torch.equal(forward.sort().values, backward.sort().values)
