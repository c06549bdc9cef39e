"""A procedural object: parts with a signed distance and a material each, placed in a common frame."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dataset.procedural.primitives import Coordinates, Distance, Vector, turn_y

# Largest distance of every object from the origin, so that all categories fill the picture equally.
REACH = 0.75


@dataclass(frozen=True)
class Part:
    """One piece of an object, in the object's own frame.

    distance maps coordinates to [N] signed distances; albedo maps them to [N,3] linear RGB in [0, 0.85].
    """

    name: str
    distance: Callable[[Coordinates], Distance]
    albedo: Callable[[Coordinates], Float[Tensor, "N 3"]]
    roughness: float = 0.6
    metallic: float = 0.0


@dataclass(frozen=True)
class ProceduralObject:
    """An instance of a category, centred, front to +z, up +y, largest distance from the origin REACH.

    The world point p has the coordinates R_y(turn)⁻¹ (p / scale + centre) in the parts' frame. The object
    contains only Python numbers, so the results have the device and dtype of the points.
    """

    kind: str
    parts: tuple[Part, ...]
    turn: float = 0.0
    centre: Vector = (0.0, 0.0, 0.0)
    scale: float = 1.0

    def signed_distance(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """Signed distance, negative inside: near the true distance, Lipschitz constant near 1."""
        p = self._own_frame(points)
        nearest = self.parts[0].distance(p)
        for part in self.parts[1:]:
            nearest = torch.minimum(nearest, part.distance(p))
        return nearest * self.scale

    def material(self, points: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
        """(kd linear albedo, ks = occlusion 0, roughness, metallic) of the part nearest to each point."""
        p = self._own_frame(points)
        nearest = torch.full_like(points[:, 0], math.inf)
        kd, ks = torch.zeros_like(points), torch.zeros_like(points)
        for part in self.parts:
            distance = part.distance(p)
            closer = distance < nearest
            nearest = torch.where(closer, distance, nearest)
            kd = torch.where(closer[:, None], part.albedo(p), kd)
            ks[:, 1].masked_fill_(closer, part.roughness)
            ks[:, 2].masked_fill_(closer, part.metallic)
        return kd, ks

    def _own_frame(self, points: Float[Tensor, "N 3"]) -> Coordinates:
        x, y, z = (points / self.scale).t().contiguous().unbind(0)
        return turn_y((x + self.centre[0], y + self.centre[1], z + self.centre[2]), self.turn)


def place(kind: str, parts: tuple[Part, ...], turn: float = 0.0) -> ProceduralObject:
    """Turn the parts about +y, move their bounding box to the origin and scale them to REACH."""
    surface = _surface_points(ProceduralObject(kind, parts, turn).signed_distance)
    centre = (surface.amin(0) + surface.amax(0)) / 2
    reach = torch.linalg.vector_norm(surface - centre, dim=-1).max()
    return ProceduralObject(kind, parts, turn, tuple(centre.tolist()), REACH / reach.item())


def _surface_points(distance: Callable[[Tensor], Tensor], extent: float = 1.6, cells: int = 32) -> Tensor:
    """Points on the zero level, dense where the surface is outermost; the parts must lie within ±extent.

    Grid points near the surface are projected onto it. The outermost points of each direction are then
    perturbed and projected again with decreasing noise, which finds thin tips.
    """
    axis = torch.linspace(-extent, extent, cells + 1)
    grid = torch.cartesian_prod(axis, axis, axis)
    cell = 2 * extent / cells
    points = _walk(distance, grid[distance(grid).abs() < cell])
    scatter = torch.Generator().manual_seed(0)
    for width in (cell / 2, cell / 4, cell / 8):
        middle = (points.amin(0) + points.amax(0)) / 2
        scores = torch.cat([points, -points, (points - middle).norm(dim=-1, keepdim=True)], 1)
        outermost = points[scores.topk(32, dim=0).indices.flatten()].repeat(2, 1)
        noise = width * torch.randn(outermost.shape, generator=scatter)
        points = torch.cat([points, _walk(distance, outermost + noise)])
    assert points.abs().max() < extent - cell, "the object leaves the grid"
    return points


def _walk(distance: Callable[[Tensor], Tensor], points: Tensor, steps: int = 3, step: float = 2e-3) -> Tensor:
    """Newton steps along the central-difference gradient; drops the points that do not converge."""
    shifts = step * torch.cat([torch.eye(3), -torch.eye(3)])
    for _ in range(steps):
        probes = distance((points[None] + shifts[:, None]).reshape(-1, 3)).reshape(2, 3, -1)
        gradient = (probes[0] - probes[1]).t() / (2 * step)
        squared = gradient.square().sum(-1, keepdim=True).clamp(min=0.25)
        points = points - distance(points)[:, None] * gradient / squared
    return points[distance(points).abs() < 2e-3]
