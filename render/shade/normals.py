"""Shading normals: correction at grazing angles, tangent-space normal maps and safe normalisation."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

GRAZING = 0.1
# Lower bound of the divisor in safe_normalize.
MIN_LENGTH = 1e-10


def shading_normal(
    smooth: Float[Tensor, "N 3"], face: Float[Tensor, "N 3"], view: Float[Tensor, "N 3"]
) -> Float[Tensor, "N 3"]:
    """Return unit normals on the viewer's side, blended with the face normal at grazing angles.

    smooth: interpolated vertex normal. face: outward normal of the triangle. view: direction to the viewer.
    All vectors have unit length. Both normals are negated if the face is seen from behind. If view·smooth
    decreases from 0.1 to 0, the result changes linearly from the smooth normal to the face normal. If
    view·smooth is below 0, the result is the face normal.
    """
    facing = (face.detach() * view.detach()).sum(-1, keepdim=True)
    side = torch.ones_like(facing).copysign(facing)
    towards = view * side
    blend = ((smooth * towards).sum(-1, keepdim=True) / GRAZING).clamp(0, 1)
    return safe_normalize(face.lerp(smooth, blend) * side)


def bump(
    normal: Float[Tensor, "N 3"], tangent: Float[Tensor, "N 3"], local: Float[Tensor, "N 3"]
) -> Float[Tensor, "N 3"]:
    """Convert tangent-space normals to unit world-space normals.

    normal: unit normal. tangent: vector along +u; it is orthogonalised to normal. The bitangent is
    cross(normal, tangent), which points up in the texture image (glTF 2.0, w = +1). local: tangent-space
    normal with z ≥ 0. If local is (0, 0, 1), the result is `normal`.
    """
    along = safe_normalize(tangent - normal * (normal * tangent).sum(-1, keepdim=True))
    axes = torch.stack([along, torch.linalg.cross(normal, along, dim=-1), normal], dim=1)
    return safe_normalize((local[:, :, None] * axes).sum(1))


def safe_normalize(vector: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 3"]:
    """Return unit vectors. For a vector of length 0, the result and the gradient are 0."""
    return _Unit.apply(vector)


class _Unit(torch.autograd.Function):
    """v / |v| with an explicit gradient. The gradient needs a third of the operations that autograd would
    need.

    A vector shorter than MIN_LENGTH has no gradient. The derivative of the formula would be 1 / MIN_LENGTH,
    which turns rounding errors of the incoming gradient into large numbers.
    """

    @staticmethod
    def forward(ctx, vector):
        length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        inverse = length.clamp_min(MIN_LENGTH).reciprocal_()
        unit = vector * inverse
        ctx.save_for_backward(unit, inverse, length)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        unit, inverse, length = ctx.saved_tensors
        along = (grad * unit).sum(-1, keepdim=True)
        factor = inverse.masked_fill(length <= MIN_LENGTH, 0.0)
        return torch.addcmul(grad, unit, along, value=-1).mul_(factor)
