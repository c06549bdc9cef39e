"""Test that surface noise is white in each view, and equal at the same surface point in two views."""

import math

import pytest
import torch

from render.camera import look_at_origin
from render.gbuffer import rasterize_gbuffer
from render.mesh import make_mesh
from render.raster.reference import ReferenceRasteriser
from sd.surface_noise import CELL_PIXELS, FRAME_HEIGHT, cell_noise, latent_pixel, surface_noise, visible_cells

RENDER, LATENT, CHANNELS = 96, 24, 4
FOVY = math.radians(40)


def wall():
    """Return a square at z = 0 that faces the camera and covers every image in these tests."""
    v_pos = torch.tensor([[-9.0, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]])
    return make_mesh(v_pos, torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32))


def views(azimuths, shifts=None):
    count = len(azimuths)
    return look_at_origin(
        torch.tensor(azimuths),
        torch.zeros(count),
        torch.full((count,), FOVY),
        (RENDER, RENDER),
        shift=None if shifts is None else torch.tensor(shifts),
    )


def noise_of(cameras, seed=0, mesh=None):
    points = rasterize_gbuffer(wall() if mesh is None else mesh, cameras, ReferenceRasteriser())
    generator = torch.Generator().manual_seed(99)
    independent = torch.randn(len(cameras.position), CHANNELS, LATENT, LATENT, generator=generator)
    size = cameras.resolution
    return surface_noise(
        independent, points.position, points.pixel, size, cameras.world_to_clip, seed
    ), independent


def correlation(a, b):
    a, b = a.flatten() - a.mean(), b.flatten() - b.mean()
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.fixture(scope="module")
def seeds():
    """Return the noise [16, C, h, w] of one oblique view of the wall for 16 seeds."""
    cameras = views([0.5])
    return torch.cat([noise_of(cameras, seed)[0] for seed in range(16)])


def test_noise_has_zero_mean_and_unit_variance(seeds):
    count = seeds.numel()
    assert abs(seeds.mean().item()) < 5 / math.sqrt(count)
    assert abs(seeds.var().item() - 1) < 5 * math.sqrt(2 / count)
    # The fourth moment of the standard normal distribution is 3.
    assert abs(seeds.pow(4).mean().item() - 3) < 5 * math.sqrt(96 / count)


def test_noise_is_white_within_a_view(seeds):
    limit = 5 / math.sqrt(seeds.numel())
    for rows, columns in ((0, 1), (1, 0), (1, 1), (2, 0), (0, 2)):
        one = seeds[:, :, rows:, columns:]
        other = seeds[:, :, : LATENT - rows, : LATENT - columns]
        assert abs(correlation(one, other)) < limit
    assert abs(correlation(seeds[:, :2], seeds[:, 2:])) < limit


def test_the_same_surface_points_have_the_same_noise_in_two_views():
    # `pixel` is the size of a latent pixel at the wall in world units.
    pixel = 2 * 3 * math.tan(FOVY / 2) / LATENT
    noise, _ = noise_of(views([0.0, 0.0], [[0.0, 0.0], [3 * pixel, 2 * pixel]]))
    # In the second view, the object is 3 pixels farther right and 2 pixels higher.
    first, second = noise[0, :, 2:, :-3], noise[1, :, :-2, 3:]
    assert correlation(first, second) > 0.97
    assert abs(correlation(noise[0], noise[1])) < 0.1


def test_rotated_view_has_the_same_noise_at_the_same_points():
    noise, _ = noise_of(views([0.0, 0.1]))
    middle = slice(LATENT // 2 - 3, LATENT // 2 + 3)
    assert correlation(noise[0, :, :, middle], noise[1, :, :, middle]) > 0.75


def test_background_keeps_the_independent_noise():
    v_pos = wall().v_pos * 0.04
    noise, independent = noise_of(views([0.0]), mesh=make_mesh(v_pos, wall().faces))
    changed = (noise != independent).any(1)[0]
    # The side of the square is 0.72 units long, which is 0.72 / 2.18 of the image height or 8 of 24 latent
    # pixels.
    assert 6**2 <= changed.sum() <= 10**2
    assert not changed[0].any() and changed[LATENT // 2, LATENT // 2]


def test_noise_depends_on_the_seed_and_not_on_the_draw():
    cameras = views([0.2])
    first, again, other = (noise_of(cameras, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert abs(correlation(first, other)) < 0.1


def test_cell_noise_is_normal_and_reproducible():
    cell = torch.tensor([[-5, 0, 7], [3, 3, 3], [-5, 0, 7], [-5, 0, 7]])
    view, found = visible_cells(torch.tensor([0, 0, 0, 1]), cell)
    assert {(v, *c) for v, c in zip(view.tolist(), found.tolist(), strict=True)} == {
        (0, -5, 0, 7),
        (0, 3, 3, 3),
        (1, -5, 0, 7),
    }
    axis = torch.arange(-15, 15)
    values = cell_noise(torch.cartesian_prod(axis, axis, axis), 4, seed=3)
    sorted_values = values.flatten().sort().values.double()
    uniform = torch.special.ndtr(sorted_values)
    gap = (uniform - torch.arange(1, len(uniform) + 1) / len(uniform)).abs().max()
    # The limit is the critical value of the Kolmogorov-Smirnov statistic at a probability of 1e-6.
    assert gap < 2.7 / math.sqrt(len(uniform))


def test_latent_pixel_of_a_projected_centre():
    cameras = views([0.0])
    # x points right and y points up. Row 0 is the top row.
    centre = torch.tensor([[0.01, 0.01, 0.0], [0.5, 0.9, 0.0], [5.0, 0.0, 0.0]])
    number, inside = latent_pixel(centre, torch.zeros(3, dtype=torch.long), cameras.world_to_clip, (24, 24))
    half = 3 * math.tan(FOVY / 2)
    expected = int((1 - 0.9 / half) * 12) * 24 + int((1 + 0.5 / half) * 12)
    assert number[:2].tolist() == [11 * 24 + 12, expected]
    assert inside.tolist() == [True, True, False]


def test_a_cell_belongs_to_the_pixel_of_its_centre():
    """With cells of side 0.12, the point 0.49 is in the cell from 0.48 to 0.60.

    The centre 0.54 of this cell is in pixel 3, which begins at 0.5.
    """
    independent = torch.full((1, CHANNELS, 4, 4), 7.0)
    position, pixel = torch.tensor([[0.49, 0.49, 0.0]]), torch.zeros(1, dtype=torch.long)
    side = CELL_PIXELS * FRAME_HEIGHT / 22
    assert side == pytest.approx(0.12)
    noise = surface_noise(independent, position, pixel, (22, 22), torch.eye(4)[None], 0)
    changed = (noise != independent).all(1)[0]
    assert changed.nonzero().tolist() == [[3, 3]]
