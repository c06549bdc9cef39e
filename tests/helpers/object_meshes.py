"""Cache procedural objects and the meshes of their zero level sets for all tests of a process."""

import functools

import igl
import torch
import trimesh

from dataset.procedural import ProceduralObject, make_object

CELLS = 72


@functools.cache
def instance(kind: str, seed: int) -> ProceduralObject:
    return make_object(kind, torch.Generator().manual_seed(seed))


@functools.cache
def surface(kind: str, seed: int) -> trimesh.Trimesh:
    """Return the zero level set, extracted by marching cubes on ±0.9 with cells of size 0.025."""
    axis = torch.linspace(-0.9, 0.9, CELLS + 1)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")  # igl requires x to vary fastest.
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    values = instance(kind, seed).signed_distance(points)
    size = CELLS + 1
    vertices, faces, *_ = igl.marching_cubes(
        values.double().numpy(), points.double().numpy(), size, size, size, 0.0
    )
    return trimesh.Trimesh(vertices, faces, process=False)
