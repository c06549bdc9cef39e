"""From the mesh's smooth normals to the normals that are rendered and shaded: METHOD sections 3 and 4."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

GRAZING = 0.1


def shading_normal(
    smooth: Float[Tensor, "N 3"], face: Float[Tensor, "N 3"], view: Float[Tensor, "N 3"]
) -> Float[Tensor, "N 3"]:
    """Unit normals towards the viewer, bent to the face's own normal at grazing angles.

    smooth is interpolated over the mesh, face is the triangle's outward normal, view points to the viewer;
    all unit length. Where the face is seen from behind both normals turn round. Where view·smooth is below
    0.1 the result blends linearly into the face normal, and is that alone from 0 down.
    """
    facing = (face.detach() * view.detach()).sum(-1, keepdim=True)
    side = torch.ones_like(facing).copysign(facing)
    towards = view * side
    blend = ((smooth * towards).sum(-1, keepdim=True) / GRAZING).clamp(0, 1)
    return safe_normalize(face.lerp(smooth, blend) * side)


def bump(
    normal: Float[Tensor, "N 3"], tangent: Float[Tensor, "N 3"], local: Float[Tensor, "N 3"]
) -> Float[Tensor, "N 3"]:
    """Tangent-space normals in world axes, unit length.

    normal is unit; tangent points along +u and is made perpendicular to it; the bitangent is
    cross(normal, tangent), which is up in the texture image as glTF 2.0 has it (w = +1). local has z ≥ 0 and
    (0, 0, 1) leaves the normal as it is.
    """
    along = safe_normalize(tangent - normal * (normal * tangent).sum(-1, keepdim=True))
    axes = torch.stack([along, torch.linalg.cross(normal, along, dim=-1), normal], dim=1)
    return safe_normalize((local[:, :, None] * axes).sum(1))


def safe_normalize(vector: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 3"]:
    """Unit vectors; a vector of length 0 stays 0 and has a finite gradient."""
    return _Unit.apply(vector)


class _Unit(torch.autograd.Function):
    """v / |v|. Its gradient written out is a third of the operations that autograd would take."""

    @staticmethod
    def forward(ctx, vector):
        inverse = torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp_min_(1e-10).reciprocal_()
        unit = vector * inverse
        ctx.save_for_backward(unit, inverse)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        unit, inverse = ctx.saved_tensors
        along = (grad * unit).sum(-1, keepdim=True)
        return torch.addcmul(grad, unit, along, value=-1).mul_(inverse)
