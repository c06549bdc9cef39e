"""From the mesh's smooth normals to the normals that are rendered and shaded: METHOD sections 3 and 4."""

import torch
from jaxtyping import Float
from torch import Tensor

GRAZING = 0.1


def shading_normal(
    smooth: Float[Tensor, "N 3"], face: Float[Tensor, "N 3"], view: Float[Tensor, "N 3"]
) -> Float[Tensor, "N 3"]:
    """Unit normals towards the viewer, bent to the face's own normal at grazing angles.

    smooth is interpolated over the mesh, face is the triangle's outward normal, view points to the viewer;
    all unit length. Where the face is seen from behind both normals turn round. Where view·smooth is below
    0.1 the result blends linearly into the face normal, and is that alone from 0 down.
    """
    towards = torch.where((face * view).sum(-1, keepdim=True) < 0, -1.0, 1.0).to(face)
    smooth, face = smooth * towards, face * towards
    blend = ((smooth * view).sum(-1, keepdim=True) / GRAZING).clamp(0, 1)
    return safe_normalize(face + (smooth - face) * blend)


def bump(
    normal: Float[Tensor, "N 3"], tangent: Float[Tensor, "N 3"], local: Float[Tensor, "N 3"]
) -> Float[Tensor, "N 3"]:
    """Tangent-space normals in world axes, unit length.

    normal is unit; tangent points along +u and is made perpendicular to it; the bitangent is
    cross(normal, tangent), which is up in the texture image as glTF 2.0 has it (w = +1). local has z ≥ 0 and
    (0, 0, 1) leaves the normal as it is.
    """
    along = safe_normalize(tangent - normal * (normal * tangent).sum(-1, keepdim=True))
    across = torch.linalg.cross(normal, along, dim=-1)
    x, y, z = local.split(1, dim=-1)
    return safe_normalize(along * x + across * y + normal * z)


def safe_normalize(vector: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Unit vectors; a vector of length 0 stays 0 and has a finite gradient."""
    return vector * torch.rsqrt(vector.square().sum(-1, keepdim=True).clamp_min(1e-20))
