"""A procedural object: parts in a common frame, each with a signed distance and a material."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dataset.procedural.primitives import Coordinates, Distance, Vector, turn_y

# Largest distance of every object's surface from the origin. It is the same for all objects, so that all
# categories have about the same size in a picture.
REACH = 0.75


@dataclass(frozen=True)
class Part:
    """One part of an object. Coordinates are in the frame of the parts (see ProceduralObject).

    distance: function from coordinates to signed distances [N]. albedo: function from coordinates to linear
    RGB in [0, 0.85], [N,3].
    """

    name: str
    distance: Callable[[Coordinates], Distance]
    albedo: Callable[[Coordinates], Float[Tensor, "N 3"]]
    roughness: float = 0.6
    metallic: float = 0.0


@dataclass(frozen=True)
class ProceduralObject:
    """An object of a category, centred on the origin. The front is +z, and up is +y.

    The largest distance of the surface from the origin is REACH.
    The world point p has the coordinates R_y(turn)⁻¹ (p / scale + centre) in the parts' frame. The object
    contains only Python numbers, so the results have the device and dtype of the points.
    """

    kind: str
    parts: tuple[Part, ...]
    turn: float = 0.0
    centre: Vector = (0.0, 0.0, 0.0)
    scale: float = 1.0

    def signed_distance(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """Return the approximate signed distance, negative inside. Its Lipschitz constant is about 1."""
        p = self._own_frame(points)
        nearest = self.parts[0].distance(p)
        for part in self.parts[1:]:
            nearest = torch.minimum(nearest, part.distance(p))
        return nearest * self.scale

    def material(self, points: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
        """Return kd and ks of the part that is nearest to each point, both [N,3].

        kd is the linear albedo. ks is (occlusion, roughness, metallic) with occlusion 0.
        """
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
    """Return an object that consists of `parts`, rotated by `turn` about +y.

    The object is shifted and scaled: the bounding box is centred on the origin, and the largest distance of
    the surface from the origin is REACH.
    """
    surface = _surface_points(ProceduralObject(kind, parts, turn).signed_distance)
    centre = (surface.amin(0) + surface.amax(0)) / 2
    reach = torch.linalg.vector_norm(surface - centre, dim=-1).max()
    return ProceduralObject(kind, parts, turn, tuple(centre.tolist()), REACH / reach.item())


def _surface_points(distance: Callable[[Tensor], Tensor], extent: float = 1.6, cells: int = 32) -> Tensor:
    """Return points on the zero level set. They are dense near the extreme points of the surface.

    Grid points near the surface are projected onto it. Then the outermost points in each direction are
    perturbed and projected again three times, with decreasing noise. This finds thin tips between grid
    points. The parts must be within ±extent.
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
    """Project points onto the surface with Newton steps. Points that do not converge are removed.

    The gradient is computed with central differences.
    """
    shifts = step * torch.cat([torch.eye(3), -torch.eye(3)])
    for _ in range(steps):
        probes = distance((points[None] + shifts[:, None]).reshape(-1, 3)).reshape(2, 3, -1)
        gradient = (probes[0] - probes[1]).t() / (2 * step)
        squared = gradient.square().sum(-1, keepdim=True).clamp(min=0.25)
        points = points - distance(points)[:, None] * gradient / squared
    return points[distance(points).abs() < 2e-3]
