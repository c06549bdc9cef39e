"""Procedural objects and meshes of their zero level sets. Both are cached for all tests of a process."""

import functools

import igl
import torch
import trimesh
from torch import Tensor

from dataset.procedural import ProceduralObject, make_object

CELLS = 72
EXTENT = 0.9
# SLOPE is an upper bound of the slope of the signed distances, which test_objects.py checks.
SLOPE = 2.0


@functools.cache
def instance(kind: str, seed: int) -> ProceduralObject:
    return make_object(kind, torch.Generator().manual_seed(seed))


@functools.cache
def grid_points() -> Tensor:
    """Return the nodes [n³,3] of a grid on ±EXTENT. x varies fastest, as igl requires."""
    axis = torch.linspace(-EXTENT, EXTENT, CELLS + 1)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], -1).reshape(-1, 3)


def grid_values(shape: ProceduralObject) -> Tensor:
    """Return the signed distances [n³] at the nodes near the surface, and values of the right sign elsewhere.

    The grids are refined step by step. A node of a finer grid first takes the value of an adjacent node of
    the coarser grid. The signed distance at a node is computed only if the surface could be in one of the
    adjacent cells.
    """
    size, step = CELLS + 1, 8
    points, width = grid_points().view(size, size, size, 3), 2 * EXTENT / CELLS
    values = shape.signed_distance(points[::step, ::step, ::step].reshape(-1, 3))
    values = values.view([(size - 1) // step + 1] * 3)
    while step > 1:
        step //= 2
        for axis in range(3):
            values = values.repeat_interleave(2, axis).narrow(axis, 0, 2 * values.shape[axis] - 1)
        near = values.abs() <= SLOPE * width * step * (3**0.5 + 1)
        values[near] = shape.signed_distance(points[::step, ::step, ::step][near])
    return values.reshape(-1)


@functools.cache
def surface(kind: str, seed: int) -> trimesh.Trimesh:
    """Return the zero level set, extracted by marching cubes with cells of size 0.025."""
    values, points, size = grid_values(instance(kind, seed)), grid_points(), CELLS + 1
    vertices, faces, *_ = igl.marching_cubes(
        values.double().numpy(), points.double().numpy(), size, size, size, 0.0
    )
    return trimesh.Trimesh(vertices, faces, process=False)
