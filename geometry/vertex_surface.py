"""A surface with fixed faces. The vertices of a mesh file are the optimised parameters."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from geometry.large_steps import Solver, UniformAdam, make_solver, smooth
from geometry.pending_mesh import PendingMesh
from render.mesh import Mesh, make_mesh

# This value is λ = α / (1 − α) with α = 0.95, as in Nicolet et al.
LAMBDA = 19.0


@dataclass(frozen=True)
class SurfaceConfig:
    """Config section of the surface that geometry_modeling optimises."""

    surface: Literal["dmtet", "mesh"] = Field(
        "dmtet",
        description="what geometry_modeling optimises: dmtet, a signed distance field on a tetrahedral grid, "
        "or mesh, the vertices of base_mesh, whose faces, texture coordinates and materials are kept",
    )
    large_steps_lambda: float = Field(
        LAMBDA,
        ge=0,
        le=1e6,
        description="with surface mesh: λ in v = (I + λL)⁻¹ u (Nicolet et al. 2021), which makes the steps "
        "smooth over about √λ edges; 0: Adam on the positions themselves",
    )

    @property
    def keeps_faces(self) -> bool:
        """Return whether the run optimises the vertices of base_mesh and keeps its faces."""
        return self.surface == "mesh"


class VertexSurface(nn.Module):
    """A mesh whose vertices are parameters and whose faces are fixed.

    The positions are v = v₀ + (I + λL)⁻¹ d, where d is 0 at the start. This equals v = (I + λL)⁻¹ u of
    large_steps.py with u = (I + λL) v₀ + d. u and d differ by a constant, so an optimizer changes both in the
    same way. d is used because the start positions are then exactly v₀, without rounding.
    """

    def __init__(self, v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], weight: float):
        """v_pos: the start positions in world units. weight: λ."""
        super().__init__()
        self.register_buffer("start", v_pos, persistent=False)
        self.register_buffer("faces", faces, persistent=False)
        self.change = nn.Parameter(torch.zeros_like(v_pos))
        self.weight = weight
        self._solver: Solver | None = None

    def mesh(self) -> Mesh:
        """Return the current mesh with smooth normals. It is differentiable with respect to `change`."""
        return make_mesh(self.start + self.displacement(), self.faces)

    def pending_mesh(self) -> PendingMesh:
        """Return the mesh of `mesh()`. Its size is known."""
        return PendingMesh(self.mesh())

    def displacement(self) -> Float[Tensor, "V 3"]:
        """Return v − v₀ in world units."""
        if self.weight == 0:
            return self.change
        if self._solver is None:
            self._solver = make_solver(self.faces, len(self.start), self.weight)
        return smooth(self.change, self._solver)

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """Return `UniformAdam`, or torch's Adam if λ is 0.

        Weight decay is not used, because it would pull the vertices back to the start.
        """
        settings = {"lr": learning_rate, "betas": (0.9, 0.99), "eps": 1e-15, "fused": self.start.is_cuda}
        kind = UniformAdam if self.weight else torch.optim.Adam
        return kind([self.change], **settings)
