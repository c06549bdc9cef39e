"""Backends and meshes that the rasteriser's tests share."""

import pytest
import torch
import trimesh

from render.raster.reference import ReferenceRasteriser


@pytest.fixture(scope="session")
def numba_rasteriser():
    pytest.importorskip("numba")
    from render.raster.numba_cpu import NumbaRasteriser

    return NumbaRasteriser()


@pytest.fixture(params=["reference", "numba"])
def rasteriser(request):
    """Every backend that runs on the CPU."""
    if request.param == "reference":
        return ReferenceRasteriser()
    return request.getfixturevalue("numba_rasteriser")


@pytest.fixture(scope="session")
def bumpy_sphere():
    """build(subdivisions) -> vertices [V,3], faces [F,3] of a closed smooth surface of 20·4ⁿ faces."""

    def build(subdivisions: int):
        sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
        direction = torch.tensor(sphere.vertices, dtype=torch.float32)
        direction = direction / direction.norm(dim=1, keepdim=True)
        x, y, z = direction.split(1, dim=1)
        radius = 0.7 + 0.08 * torch.sin(7 * x + 1) * torch.sin(6 * y) + 0.05 * torch.sin(11 * z)
        return direction * radius, torch.tensor(sphere.faces)

    return build


@pytest.fixture(scope="session")
def disc():
    """build(radius, sectors) -> clip [1,V,4] (w = 1, z = 0, centred) and faces of a flat fan."""

    def build(radius: float, sectors: int = 96):
        angle = torch.arange(sectors) * (2 * torch.pi / sectors)
        rim = torch.stack([angle.cos() * radius, angle.sin() * radius], -1)
        xy = torch.cat([torch.zeros(1, 2), rim])
        clip = torch.cat([xy, torch.zeros(len(xy), 1), torch.ones(len(xy), 1)], -1)[None]
        first = torch.arange(sectors)
        faces = torch.stack([torch.zeros_like(first), first + 1, (first + 1) % sectors + 1], -1)
        return clip, faces

    return build
