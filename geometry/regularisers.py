"""Loss terms of a surface. Each term is a function of a `Mesh`. Its weight is the config key of the same
name.

To add a term, write a function of a mesh, add it to TERMS and add a key of the same name to
`RegulariserConfig`.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Bool, Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from render.mesh import Mesh, face_cross

Weight = Annotated[float, Ge(0)]
# A constant or [start, end]. With [start, end], the weight changes linearly in the first phase after the fit
# and is `end` afterwards.
WeightSchedule = Weight | tuple[Weight, Weight]

# If one of the two faces at an edge is smaller than this share of the mean face area, the weight of the edge
# is proportional to the area of this face. Marching tetrahedra creates thin faces whose normals have
# gradients proportional to 1 / height. With the full weight, these faces would dominate the gradient.
FULL_WEIGHT_AREA = 0.5


@dataclass(frozen=True)
class RegulariserConfig:
    """Weights of the surface terms in geometry_modeling."""

    normal_consistency: WeightSchedule = Field(
        0.0,
        description="weight of the sum over edges of 1 − cos(angle between the two faces' normals); "
        "[start, end] changes linearly over the first phase after the fit and then stays",
    )
    laplacian: WeightSchedule = Field(
        0.0,
        description="weight of the sum over vertices of the squared distance to the mean of their "
        "neighbours; [start, end] as for normal_consistency",
    )

    @property
    def active(self) -> bool:
        """Return whether any term has a weight above 0."""
        return bool(self.weights(0.0))

    def weights(self, annealing: float) -> dict[str, float]:
        """Return the weights of the terms whose schedule is not constantly 0.

        annealing: progress of the schedule, from 0 (start) to 1 (end).
        """
        schedules = {name: _as_pair(getattr(self, name)) for name in TERMS}
        return {
            name: start + (end - start) * annealing
            for name, (start, end) in schedules.items()
            if (start, end) != (0, 0)
        }


def _as_pair(value: float | tuple[float, float]) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)


def normal_consistency(mesh: Mesh) -> Float[Tensor, ""]:
    """Return Σ over edges of c (1 − n_a · n_b), where n_a and n_b are the unit normals of the edge's faces.

    c = min(1, min(area_a, area_b) / (FULL_WEIGHT_AREA · mean area)). c is treated as a constant in the
    gradient. An edge with k > 2 faces contributes k − 1 pairs of faces, and a boundary edge contributes none.
    """
    faces, same = _edge_neighbours(mesh.faces, len(mesh.v_pos))
    cross = face_cross(mesh.v_pos, mesh.faces)
    squared = cross.square().sum(-1)
    # Squared lengths of 0 are replaced by 1, because the gradient of the square root is infinite at 0.
    length = torch.where(squared > 0, squared, torch.ones_like(squared)).sqrt()
    normal = cross / length[:, None]
    with torch.no_grad():
        area = squared.sqrt()
        share = (area / (FULL_WEIGHT_AREA * area.mean())).clamp(max=1)
        weight = torch.minimum(share.index_select(0, faces[:-1]), share.index_select(0, faces[1:])) * same
    normal_a, normal_b = normal.index_select(0, faces[:-1]), normal.index_select(0, faces[1:])
    return (weight * (1 - (normal_a * normal_b).sum(-1))).sum()


def laplacian(mesh: Mesh) -> Float[Tensor, ""]:
    """Return Σ over vertices of ‖L v‖², where L v = v − mean of the vertex's neighbours (uniform weights)."""
    count = len(mesh.v_pos)
    low, high, _ = sorted_edges(mesh.faces, count)
    repeated = _same_as_previous(low, high)
    weight = (~repeated).to(mesh.v_pos.dtype)[:, None]
    total, degree = torch.zeros_like(mesh.v_pos), mesh.v_pos.new_zeros(count, 1)
    for start, end in ((low, high), (high, low)):
        total = total.index_add(0, start, mesh.v_pos.index_select(0, end) * weight)
        degree = degree.index_add(0, start, weight)
    # A vertex without edges has no neighbours, so its term is 0.
    mean = torch.where(degree > 0, total / degree.clamp(min=1), mesh.v_pos)
    return (mesh.v_pos - mean).square().sum()


TERMS: dict[str, Callable[[Mesh], Float[Tensor, ""]]] = {
    "normal_consistency": normal_consistency,
    "laplacian": laplacian,
}


def surface_loss(mesh: Mesh, weights: dict[str, float]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the weighted sum of the terms, and the unweighted value of each."""
    values = {name: TERMS[name](mesh) for name in weights}
    total = sum(weight * values[name] for name, weight in weights.items())
    return total, {name: value.detach() for name, value in values.items()}


def sorted_edges(
    faces: Int[Tensor, "F 3"], vertices: int
) -> tuple[Int[Tensor, " E"], Int[Tensor, " E"], Int[Tensor, " E"]]:
    """Return the smaller vertex index, the larger vertex index and the face of each of the E = 3F face sides.
    A face side is an edge of one face.

    The sides are sorted by edge, so the sides of one edge are adjacent in the result. The output shapes do
    not depend on the values, so the host need not wait for a GPU.
    """
    faces = faces.long()
    start, end = faces.flatten(), faces.roll(-1, 1).flatten()
    key = torch.minimum(start, end) * vertices + torch.maximum(start, end)
    key, order = key.sort(stable=True)
    return key // vertices, key % vertices, order // 3


def _same_as_previous(low: Int[Tensor, " E"], high: Int[Tensor, " E"]) -> Bool[Tensor, " E"]:
    same = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    return torch.cat([same.new_zeros(1), same])


def _edge_neighbours(
    faces: Int[Tensor, "F 3"], vertices: int
) -> tuple[Int[Tensor, " E"], Bool[Tensor, " P"]]:
    """Return the face of each sorted side, and whether sides i and i + 1 belong to one edge (P = E − 1)."""
    low, high, face = sorted_edges(faces, vertices)
    return face, _same_as_previous(low, high)[1:]
