"""Compare baked textures with the field at random points of the surface."""

from dataclasses import replace

import pytest
import torch
from export_shapes import bilinear, bumpy_ball, smooth_field, surface_samples

from render.mesh import Mesh, make_mesh
from render.raster.reference import ReferenceRasteriser
from render.texturing.bake import bake, fill_unknown, texel_owners
from render.texturing.uv import unwrap

RASTERISER = ReferenceRasteriser()
# Texels are 1/72 apart and |f''| ≤ 0.45 · 7², so the error of a bilinear lookup on a flat chart is at most
# 2 · 22 / 72² / 8 ≈ 1e-3. The bounds are larger because charts are stretched, faces meet at an angle, and the
# planes of the faces are continued beyond the border of a chart, where they leave the surface. If the planes
# were not continued, the error at a border would be 0.3 to 0.6.
BOUND = {False: 4e-3, True: 1e-2}


# If a face is projected at 60 degrees, its texel density is halved, so the error is four times as large.
LEANING = {"xatlas": 1.0, "uvunwrap": 1.0, "projection": 4.0}


@pytest.fixture(scope="module", params=LEANING)
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def mesh(method) -> Mesh:
    return unwrap(bumpy_ball(), method, (256, 256), 4)


@pytest.fixture(scope="module")
def textures(mesh) -> dict[str, torch.Tensor]:
    return bake(mesh, smooth_field, (256, 256), RASTERISER, chunk=10_000)


@pytest.mark.parametrize("edge", [False, True])
def test_lookups_equal_the_field_inside_faces_and_on_seams(method, mesh, textures, edge):
    points, uv = surface_samples(mesh, 20_000, edge)
    for name, exact in smooth_field(points).items():
        assert textures[name].shape == (256, 256, 3)
        assert (bilinear(textures[name], uv) - exact).abs().max() < BOUND[edge] * LEANING[method], name


def test_error_is_quadratic_in_the_texel_size(mesh, textures):
    points, uv = surface_samples(mesh, 5000)
    exact = smooth_field(points)["kd"]
    fine = bake(mesh, smooth_field, (512, 512), RASTERISER)
    coarse_error = (bilinear(textures["kd"], uv) - exact).square().mean().sqrt()
    fine_error = (bilinear(fine["kd"], uv) - exact).square().mean().sqrt()
    assert 3 < coarse_error / fine_error < 5


def test_small_mip_levels_have_no_seams(mesh, textures):
    """A constant field gives a constant texture, and lookups at mip level 3 have a small error."""
    constant = bake(mesh, lambda p: {"kd": torch.full_like(p, 0.25)}, (256, 256), RASTERISER)["kd"]
    assert (constant - 0.25).abs().max() < 1e-6
    small = torch.nn.functional.avg_pool2d(textures["kd"].permute(2, 0, 1)[None], 8)[0].permute(1, 2, 0)
    points, uv = surface_samples(mesh, 20_000, edge=True)
    error = (bilinear(small, uv) - smooth_field(points)["kd"]).abs()
    assert error.mean() < 0.09


def test_oblong_textures_and_several_channels(mesh):
    points, uv = surface_samples(mesh, 5000)
    texture = bake(mesh, lambda p: {"height": p[:, 1:2]}, (128, 512), RASTERISER)["height"]
    assert texture.shape == (128, 512, 1)
    assert (bilinear(texture, uv) - points[:, 1:2]).abs().max() < 5e-3


def test_faces_smaller_than_a_texel_own_one():
    """Six triangles have sides of a tenth of a texel and contain no texel centre."""
    side = 32
    place = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0], [4.0, 20.0], [12.0, 20.0], [20.0, 20.0]])
    corners = torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.1, 0.0]])
    uv = ((place[:, None] + corners) / side).reshape(-1, 2)
    faces = torch.arange(18).reshape(6, 3)
    flat = make_mesh(torch.cat([uv, torch.zeros(18, 1)], -1), faces)
    mesh = replace(flat, uv=uv, uv_faces=faces)
    assert texel_owners(mesh, (side, side), RASTERISER).unique().tolist() == [-1, 0, 1, 2, 3, 4, 5]
    texture = bake(mesh, lambda p: {"place": p[:, :2]}, (side, side), RASTERISER)["place"]
    assert (bilinear(texture, uv) - uv).abs().max() < 2 / side


def test_unknown_texels_take_the_mean_of_the_smallest_block():
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(11, 14, 2, generator=generator)
    known = torch.rand(11, 14, generator=generator) < 0.04
    filled = fill_unknown(values, known)
    for y in range(11):
        for x in range(14):
            size = 1
            while True:
                rows = slice(y // size * size, y // size * size + size)
                columns = slice(x // size * size, x // size * size + size)
                if known[rows, columns].any():
                    break
                size *= 2
            expected = values[rows, columns][known[rows, columns]].mean(0)
            assert torch.allclose(filled[y, x], expected, atol=1e-6)
    assert fill_unknown(values, torch.zeros_like(known)).abs().max() == 0


def test_field_is_evaluated_in_chunks_without_gradients(mesh):
    sizes = []

    def field(points: torch.Tensor) -> dict[str, torch.Tensor]:
        assert not torch.is_grad_enabled()
        sizes.append(len(points))
        return {"kd": points}

    bake(mesh, field, (64, 64), RASTERISER, chunk=500)
    assert max(sizes) == 500 and len(sizes) > 2
