"""Compare the prefiltered light with closed forms and with integrals that do not use a cube map."""

import math

import pytest
import torch

from render.shade import prefilter as prefilter_module
from render.shade.cubemap import texel_directions
from render.shade.prefilter import (
    convolve_torch,
    level_roughness,
    numba_convolution,
    prefilter,
    roughness_to_level,
    tangent_frame,
)


def unit_vectors(count, seed=0, dtype=torch.float32):
    vectors = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1).to(dtype)


LAMP = torch.nn.functional.normalize(torch.tensor([0.6, 0.7, 0.4]), dim=0)


def lamp_light(direction):
    """Return a dim light that varies slowly, plus a lamp about 15 degrees wide."""
    lamp = torch.exp(40 * (direction @ LAMP.to(direction) - 1))[..., None]
    return 0.3 + 0.2 * direction + lamp * torch.tensor([20.0, 10.0, 5.0]).to(direction)


def lamp_cube(size=64):
    return lamp_light(texel_directions(size))


def integral(direction, kernel):
    """Compute ∫ lamp_light(l) kernel(cos) / ∫ kernel(cos) in polar coordinates about each direction."""
    # θ = π/2 · t³ places more samples near 0, so that narrow lobes are resolved.
    t = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    theta, turn = math.pi / 2 * t**3, (torch.arange(48, dtype=torch.float64) + 0.5) * (2 * math.pi / 48)
    weight = kernel(theta.cos()) * theta.sin() * t**2
    ring = torch.stack([turn.cos(), turn.sin()], -1)
    normal = direction.double()
    least = torch.nn.functional.one_hot(normal.abs().argmin(-1), 3).double()
    across = torch.nn.functional.normalize(torch.linalg.cross(normal, least, dim=-1), dim=-1)
    plane = torch.stack([across, torch.linalg.cross(normal, across, dim=-1)], 1)
    sideways = torch.einsum("ka,nac->nkc", ring, plane)
    total = torch.zeros_like(normal)
    for angle, share in zip(theta, weight / weight.sum(), strict=True):
        points = normal[:, None] * angle.cos() + sideways * angle.sin()
        total += share * lamp_light(points).mean(1)
    return total.float()


def ggx_kernel(roughness):
    """Return a function that computes D(h) n·l from cos θ = n·l. The view is along n, so n·h = cos(θ/2)."""
    alpha = roughness**2

    def kernel(cosine):
        half_squared = (1 + cosine) / 2
        density = alpha**2 / (math.pi * (half_squared * (alpha**2 - 1) + 1) ** 2)
        return density * cosine

    return kernel


@pytest.mark.parametrize("size", [64, 128])
def test_constant_light_prefilters_to_itself(size):
    colour = torch.tensor([0.2, 1.0, 7.0])
    light = prefilter(colour.expand(6, size, size, 3), lookups=200_000)
    direction, roughness = unit_vectors(500), torch.rand(500, 1)
    assert torch.allclose(light.diffuse(direction), colour.expand(500, 3), rtol=2e-6)
    assert torch.allclose(light.specular(direction, roughness), colour.expand(500, 3), rtol=2e-6)


def test_irradiance_of_the_first_band_and_of_a_hemisphere():
    """For light a + b x, irradiance / π = a + 2/3 b n_x.

    For a light of 1 in the hemisphere y > 0 and of 0 elsewhere, irradiance / π = (1 + n_y) / 2.
    """
    direction = texel_directions(64)
    linear = torch.stack(
        [1 + 0.5 * direction[..., 0], direction[..., 1] + 1, (direction[..., 1] > 0).float()], -1
    )
    normal = unit_vectors(2000)
    x, y, _ = normal.unbind(-1)
    expected = torch.stack([1 + x / 3, 1 + 2 / 3 * y, (1 + y) / 2], -1)
    assert (prefilter(linear, 1_000_000).diffuse(normal) - expected).abs().max() < 0.008


def test_irradiance_of_a_squared_cosine():
    """For light x², irradiance / π = 1/4 + n_x² / 4.

    In spherical harmonics, band 0 contributes 1/3. Band 2 contributes 1/4 of (n_x² − 1/3).
    """
    squared = texel_directions(64) ** 2
    normal = unit_vectors(2000)
    assert (prefilter(squared, 1_000_000).diffuse(normal) - (1 + normal**2) / 4).abs().max() < 0.008


def around_the_lamp(count=80):
    """Return directions near the lamp. The lobes of most of them overlap the lamp."""
    aside = (
        torch.randn(count, 3, generator=torch.Generator().manual_seed(4))
        * torch.linspace(0, 1.5, count)[:, None]
    )
    return torch.nn.functional.normalize(LAMP + aside, dim=-1)


def test_diffuse_equals_the_integral():
    direction = around_the_lamp()
    expected = integral(direction, lambda cosine: cosine)
    error = prefilter(lamp_cube(), lookups=1_000_000).diffuse(direction) - expected
    assert error.norm() / expected.norm() < 0.01


@pytest.mark.parametrize("level, bound", [(0, 0.015), (1, 0.02), (2, 0.03), (3, 0.03)])
def test_specular_equals_the_integral_at_the_roughness_of_a_mip(level, bound):
    roughness, direction = level_roughness(4)[level], around_the_lamp()
    expected = integral(direction, ggx_kernel(roughness))
    found = prefilter(lamp_cube(128), lookups=1_500_000).specular(direction, torch.full((80, 1), roughness))
    assert (found - expected).norm() / expected.norm() < bound


def test_light_from_above_lights_upward_normals():
    cube = torch.zeros(6, 64, 64, 3)
    cube[texel_directions(64)[..., 1] > 0.9] = 1.0
    light = prefilter(cube, lookups=500_000)
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    diffuse = light.diffuse(axes)[:, 0]
    specular = light.specular(axes, torch.full((6, 1), 0.3))[:, 0]
    # On an upward surface, irradiance / π is sin² of the half angle of the lit cap, which is 1 − 0.9².
    assert diffuse[1] == pytest.approx(0.19, abs=0.01)
    assert specular[1] > 0.7
    others = [0, 2, 3, 4, 5]
    assert diffuse[others].max() < 0.07 and specular[others].max() < 0.05
    assert diffuse[4] == 0


def test_mip_level_increases_with_roughness():
    assert level_roughness(6) == pytest.approx([0.08, 0.185, 0.29, 0.395, 0.5, 1.0])
    for levels in (3, 4, 6, 7):
        roughness = torch.tensor(level_roughness(levels))[:, None]
        assert torch.allclose(
            roughness_to_level(roughness, levels)[:, 0], torch.arange(levels).float(), atol=1e-5
        )
    outside = roughness_to_level(torch.tensor([[0.0], [1.5]]), 6)
    assert outside[:, 0].tolist() == pytest.approx([0, 5])


def test_higher_roughness_is_blurrier():
    light = prefilter(lamp_cube(), lookups=500_000)
    direction = texel_directions(32).reshape(-1, 3)
    spread = [
        light.specular(direction, torch.full((len(direction), 1), r)).std().item()
        for r in torch.linspace(0.08, 1, 12).tolist()
    ]
    assert spread == sorted(spread, reverse=True)


def test_gradients_of_direction_and_roughness():
    light = prefilter(lamp_cube().double(), lookups=50_000)
    direction = unit_vectors(10, seed=2, dtype=torch.float64).requires_grad_()
    roughness = torch.linspace(0.1, 0.95, 10, dtype=torch.float64)[:, None].requires_grad_()
    assert torch.autograd.gradcheck(light.specular, (direction, roughness), eps=1e-7, atol=1e-4)
    assert torch.autograd.gradcheck(light.diffuse, (direction,), eps=1e-7, atol=1e-4)


def test_gradient_on_axes_and_diagonals_is_finite():
    light = prefilter(lamp_cube(), lookups=50_000)
    direction = torch.cartesian_prod(*[torch.tensor([-1.0, 0, 1])] * 3)
    direction = direction[direction.abs().sum(-1) > 0].requires_grad_()
    roughness = torch.tensor([0.0, 0.08, 0.5, 1.0]).repeat(7)[:26, None].requires_grad_()
    (light.specular(direction, roughness).sum() + light.diffuse(direction).sum()).backward()
    assert direction.grad.isfinite().all() and roughness.grad.isfinite().all()


def test_prefilter_is_linear_in_the_light_and_differentiable():
    cube = lamp_cube().double().requires_grad_()
    direction, roughness = (
        unit_vectors(64, dtype=torch.float64),
        torch.full((64, 1), 0.4, dtype=torch.float64),
    )
    light = prefilter(cube, lookups=50_000)
    value = light.specular(direction, roughness).sum() + light.diffuse(direction).sum()
    (gradient,) = torch.autograd.grad(value, cube)
    # The prefilter is linear, so the inner product of the gradient and the light equals the value.
    assert (gradient * cube).sum().item() == pytest.approx(value.item(), rel=1e-9)


def test_tangent_frames_are_right_handed_and_orthonormal():
    normal = torch.cat([unit_vectors(500), torch.eye(3), -torch.eye(3)])
    tangent, bitangent = tangent_frame(normal)
    frame = torch.stack([tangent, bitangent, normal], 1)
    assert torch.allclose(frame @ frame.transpose(1, 2), torch.eye(3).expand_as(frame), atol=1e-5)
    assert torch.allclose(torch.linalg.cross(tangent, bitangent, dim=-1), normal, atol=1e-5)


@pytest.mark.parametrize("size", [64, 128])
def test_numba_equals_torch(size, monkeypatch):
    """All texels are random, so a wrong face, border, row or column would change the result."""
    light = torch.rand(6, size, size, 3, generator=torch.Generator().manual_seed(2)) * 5
    assert numba_convolution() is not None
    compiled = prefilter(light, lookups=100_000)
    monkeypatch.setattr(prefilter_module, "choose_convolution", lambda light: convolve_torch)
    reference = prefilter(light, lookups=100_000)
    torch.testing.assert_close(compiled.table, reference.table, rtol=1e-4, atol=1e-5)


def test_convolution_does_not_depend_on_the_number_of_points_at_once(monkeypatch):
    light = torch.rand(6, 64, 64, 3, generator=torch.Generator().manual_seed(3), requires_grad=True)
    expected = prefilter(light, lookups=20_000).table
    monkeypatch.setattr(prefilter_module, "CHUNK", prefilter_module.GPU_CHUNK)
    torch.testing.assert_close(prefilter(light, lookups=20_000).table, expected, rtol=1e-5, atol=1e-6)


def test_a_learned_light_uses_the_differentiable_convolution():
    light = torch.rand(6, 64, 64, 3)
    assert prefilter_module.choose_convolution(light) is numba_convolution()
    assert prefilter_module.choose_convolution(light.requires_grad_()) is convolve_torch
