"""Compare shading with Monte Carlo integration, energy conservation and the closed form of sRGB."""

import math

import pytest
import torch

from render.shade import brdf
from render.shade.brdf import linear_to_srgb, lookup_split_sum, shade, split_sum_table
from render.shade.cubemap import texel_directions
from render.shade.prefilter import prefilter


@pytest.fixture(scope="module")
def white():
    return prefilter(torch.ones(6, 64, 64, 3), lookups=100_000)


def facing(cosine):
    """Return normals +z and view directions with n·v = cosine."""
    normal = torch.tensor([0.0, 0.0, 1.0]).expand(len(cosine), 3)
    view = torch.stack([(1 - cosine**2).sqrt(), torch.zeros_like(cosine), cosine], -1)
    return normal, view


def monte_carlo(cosine, roughness, samples=200_000):
    """Compute (scale, bias) of the split sum by Monte Carlo integration in float64.

    Half vectors have density D n·h. The table under test uses another density (visible normals) and other
    points, so only the integrand is the same.
    """
    generator = torch.Generator().manual_seed(7)
    u, turn = torch.rand(2, samples, generator=generator, dtype=torch.float64)
    a2 = roughness**4
    half_z = ((1 - u) / (1 + (a2 - 1) * u)).sqrt()
    half_x = (1 - half_z**2).sqrt() * (turn * 2 * math.pi).cos()
    view_half = math.sqrt(1 - cosine**2) * half_x + cosine * half_z
    z = 2 * view_half * half_z - cosine
    lit = (z > 0) & (view_half > 0)
    z = z.clamp_min(1e-9)
    # The height-correlated Smith visibility is G / (4 n·l n·v). The density of l is D n·h / (4 v·h).
    visibility = 0.5 / (z * math.sqrt(cosine**2 * (1 - a2) + a2) + cosine * (z * z * (1 - a2) + a2).sqrt())
    whole = torch.where(lit, visibility * z * 4 * view_half / half_z, 0)
    fresnel = (1 - view_half.clamp(0, 1)) ** 5
    return (whole * (1 - fresnel)).mean().item(), (whole * fresnel).mean().item()


@pytest.mark.parametrize("cosine", [0.1, 0.4, 0.95])
@pytest.mark.parametrize("roughness", [0.3, 0.6, 1.0])
def test_split_sum_table_equals_monte_carlo(cosine, roughness):
    found = lookup_split_sum(split_sum_table(), torch.tensor([[cosine]]), torch.tensor([[roughness]]))
    assert found[0].tolist() == pytest.approx(monte_carlo(cosine, roughness), abs=0.004)


def test_split_sum_table_of_a_mirror():
    """For roughness → 0, scale = 1 − (1 − n·v)⁵ and bias = (1 − n·v)⁵. The sum is 1."""
    table = split_sum_table()
    cosine = (torch.arange(256) + 0.5) / 256
    expected = torch.stack([1 - (1 - cosine) ** 5, (1 - cosine) ** 5], -1)
    assert (table[0, 16:] - expected[16:]).abs().max() < 1e-3


def test_split_sum_table_conserves_energy():
    total = split_sum_table().sum(-1)
    assert total.max() <= 1 + 1e-5 and split_sum_table().min() >= 0
    # At normal incidence, single scattering loses more light if the roughness is higher.
    assert (total[:, 255].diff() <= 1e-4).all() and total[255, 255] < 0.5


def test_rows_of_a_gpu_equal_those_of_the_cpu():
    """A GPU computes several rows at once, with a roughness in float32 and another order of the sums."""
    cosine = (torch.arange(256) + 0.5) / 256
    rows = brdf._integrate_rows(torch.tensor([10.5, 200.5]) / 256, cosine)
    assert rows.shape == (2, 256, 2)
    torch.testing.assert_close(rows, split_sum_table()[[10, 200]], atol=1e-5, rtol=0)


def test_white_furnace(white):
    """If the light is 1 everywhere, the colour equals the reflectance, which has closed-form bounds."""
    cosine = torch.linspace(0.05, 1, 50)
    normal, view = facing(cosine)
    one = torch.ones(50, 3)

    def colour(kd, occlusion=0.0, roughness=1.0, metallic=0.0):
        ks = torch.tensor([occlusion, roughness, metallic]).expand(50, 3)
        return shade(one * kd, ks, normal, view, white)

    rough_dielectric = colour(1.0)
    # With kd = 1 the diffuse part reflects all light. The split sum adds a specular lobe of a few per cent,
    # so the colour can exceed 1.
    assert rough_dielectric.min() >= 1.0 and rough_dielectric.max() <= 1.07
    assert rough_dielectric[-10:].max() <= 1.03
    smooth_metal = colour(1.0, roughness=0.08, metallic=1.0)
    assert ((smooth_metal > 0.97) & (smooth_metal <= 1 + 1e-5)).all()
    assert colour(1.0, metallic=1.0).max() < 0.85
    assert torch.equal(colour(1.0, occlusion=1.0), torch.zeros(50, 3))
    assert torch.allclose(colour(0.5, occlusion=0.25), 0.75 * colour(0.5))
    # The exact colour of a black dielectric is 0.04 scale + bias. The colour is linear in the albedo.
    scale, bias = lookup_split_sum(split_sum_table(), cosine[:, None], torch.full((50, 1), 0.7)).split(1, -1)
    assert torch.allclose(colour(0.0, roughness=0.7), (0.04 * scale + bias).expand(50, 3), atol=1e-6)
    assert torch.allclose(colour(0.3, roughness=0.7) - colour(0.0, roughness=0.7), one * 0.3, atol=1e-6)
    half_metal = colour(0.6, roughness=0.7, metallic=0.5)
    assert torch.allclose(half_metal, ((0.02 + 0.3) * scale + bias + 0.3).expand(50, 3), atol=1e-5)


def test_mirror_reflects_the_light_of_the_mirror_direction():
    """A smooth metal is seen from +z.

    With a normal halfway between +x and +z, it reflects the light from +x. With normal +z, it reflects the
    light from +z.
    """
    red, green = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    direction = texel_directions(64)
    cube = (direction[..., :1] > 0.7) * red + (direction[..., 2:] > 0.7) * green
    light = prefilter(cube, lookups=200_000)
    normal = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 1.0], [0, 0, 1.0]]), dim=-1)
    view = torch.tensor([[0.0, 0, 1.0]]).expand(2, 3)
    metal = torch.tensor([0.0, 0.08, 1.0]).expand(2, 3)
    seen = shade(torch.ones(2, 3), metal, normal, view, light)
    assert torch.allclose(seen, torch.stack([red, green]), atol=0.03)


def test_shading_gradients_are_correct_and_finite():
    generator = torch.Generator().manual_seed(0)
    cube = texel_directions(64).double() * 0.4 + 1
    light = prefilter(cube, lookups=20_000)
    table = split_sum_table(16).double()
    kd, ks = (torch.rand(8, 3, generator=generator, dtype=torch.float64) * 0.8 + 0.1 for _ in range(2))
    normal = torch.nn.functional.normalize(
        torch.randn(8, 3, generator=generator, dtype=torch.float64), dim=-1
    )
    aside = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    view = torch.nn.functional.normalize(normal + 0.5 * aside, dim=-1)
    inputs = [tensor.requires_grad_() for tensor in (kd, ks, normal, view)]
    assert torch.autograd.gradcheck(lambda *some: shade(*some, light, table), inputs, eps=1e-7, atol=1e-4)


def test_gradient_is_finite_for_normals_facing_away(white):
    normal = torch.tensor([[0.0, 0, 1], [0, 0, -1], [1, 0, 0]]).requires_grad_()
    view = torch.tensor([[0.0, 0, 1]]).expand(3, 3)
    ks = torch.tensor([0.0, 0.0, 0.0]).expand(3, 3).clone().requires_grad_()
    shade(torch.zeros(3, 3), ks, normal, view, white).sum().backward()
    assert normal.grad.isfinite().all() and ks.grad.isfinite().all()


@pytest.mark.parametrize(
    "linear, srgb", [(0, 0), (0.0031308, 0.04045), (0.2140411, 0.5), (0.5, 0.7353570), (1, 1)]
)
def test_srgb_closed_form(linear, srgb):
    assert linear_to_srgb(torch.tensor(float(linear))).item() == pytest.approx(srgb, abs=2e-6)


def test_srgb_is_decoded_by_the_standard_and_has_finite_gradients():
    linear = torch.linspace(-0.1, 3, 2000, dtype=torch.float64).requires_grad_()
    srgb = linear_to_srgb(linear)
    decoded = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp_min(0.04) + 0.055) / 1.055) ** 2.4)
    assert torch.allclose(decoded, linear, atol=1e-7)
    assert (srgb.diff() > 0).all()
    srgb.sum().backward()
    assert linear.grad.isfinite().all() and linear.grad.max() <= 12.93
