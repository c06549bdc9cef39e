"""The triangle mesh that is used by the geometry, the renderer and the exporters."""

from dataclasses import dataclass, fields
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.kernels.available import triton_available


@dataclass(frozen=True)
class Mesh:
    """Triangles with smooth normals and, after unwrapping, texture coordinates.

    v_pos [V,3]: positions in world units. faces [F,3]: vertex indices, counter-clockwise as seen from
    outside. v_nrm [V,3]: area-weighted unit normals. uv [U,2]: in [0,1] with (0,0) at the top left of the
    texture. tangents [U,3]: unit vectors along +u. uv_faces [F,3]: indices into uv and tangents, so a vertex
    on a seam can have several uv. handedness [U]: −1 where the texture is mirrored, otherwise 1; None means 1
    everywhere. The bitangent is handedness · cross(normal, tangent).
    """

    v_pos: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    v_nrm: Float[Tensor, "V 3"]
    uv: Float[Tensor, "U 2"] | None = None
    uv_faces: Int[Tensor, "F 3"] | None = None
    tangents: Float[Tensor, "U 3"] | None = None
    handedness: Float[Tensor, " U"] | None = None

    def to(self, device: torch.device | str) -> "Mesh":
        values = (getattr(self, field.name) for field in fields(self))
        return Mesh(*(None if value is None else value.to(device) for value in values))

    def detach(self) -> "Mesh":
        values = (getattr(self, field.name) for field in fields(self))
        return Mesh(*(None if value is None else value.detach() for value in values))


def face_cross(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "F 3"]:
    """Return face normals [F,3]. The length of each normal is twice the area of the face."""
    # index_select is used instead of v_pos[faces], because its backward pass only adds values. The backward
    # pass of v_pos[faces] also sorts the indices, which is slower.
    a, b, c = (v_pos.index_select(0, faces[:, corner]) for corner in range(3))
    return torch.linalg.cross(b - a, c - a, dim=-1)


@cache
def _up(dtype: torch.dtype, device: torch.device) -> Float[Tensor, "3"]:
    """Return the vector +z on a device. The vector is cached, because each copy to a GPU makes the program
    wait.
    """
    return torch.tensor([0.0, 0.0, 1.0], dtype=dtype, device=device)


def smooth_normals(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "V 3"]:
    """Return area-weighted unit vertex normals. The normal of a vertex without faces is +z."""
    if triton_available(v_pos):
        from render.kernels import vertex_normals_triton

        return vertex_normals_triton.smooth_normals(v_pos, faces)
    return smooth_normals_torch(v_pos, faces)


def smooth_normals_torch(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "V 3"]:
    weighted = face_cross(v_pos, faces)
    summed = torch.zeros_like(v_pos)
    for corner in range(3):
        summed.index_add_(0, faces[:, corner], weighted)
    squared = summed.square().sum(-1, keepdim=True)
    # Zero vectors are replaced before normalize, because the square root in normalize has an infinite
    # gradient at 0.
    summed = torch.where(squared > 1e-20, summed, _up(v_pos.dtype, v_pos.device))
    return torch.nn.functional.normalize(summed, dim=-1)


def make_mesh(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Mesh:
    """Return a mesh without texture coordinates. Its normals are computed from positions and faces."""
    return Mesh(v_pos, faces, smooth_normals(v_pos, faces))
