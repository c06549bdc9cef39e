"""Test cameras: positions, and azimuths that cover the circle evenly for any number of processes."""

import math

import pytest
import torch

from dataset.cameras import (
    CameraConfig,
    azimuth_sector,
    draw_azimuths,
    normal_rotations,
    sample_cameras,
    step_generator,
    view_indices,
)
from render.camera import look_at_origin, transform_points

DEGREES = torch.arange(-720.0, 720.0, 0.5)


def to_clip(camera, point):
    clip = transform_points(camera.world_to_clip, torch.tensor([point]))[0, 0]
    return clip[:3] / clip[3]


def one_camera(azimuth=0.0, elevation=0.0, fovy=45.0, shift=(0.0, 0.0)):
    angles = [torch.deg2rad(torch.tensor([value])) for value in (azimuth, elevation, fovy)]
    return look_at_origin(*angles, (64, 64), shift=torch.tensor([shift]))


def test_front_camera_stands_on_plus_z_and_sees_up_in_row_zero():
    camera = one_camera()
    assert torch.allclose(camera.position, torch.tensor([[0.0, 0.0, 3.0]]), atol=1e-6)
    # The point is at the upper edge of a 45° field of view and has z = 0.
    top = to_clip(camera, [0.0, 3.0 * math.tan(math.radians(22.5)), 0.0])
    assert torch.allclose(top[:2], torch.tensor([0.0, -1.0]), atol=1e-6)
    right = to_clip(camera, [0.5, 0.0, 0.0])
    assert right[0] > 0.1


def test_elevation_lifts_the_camera_and_nearer_is_smaller_depth():
    camera = one_camera(elevation=30.0)
    assert camera.position[0, 1] == pytest.approx(1.5, abs=1e-6)
    assert to_clip(camera, [0.0, 0.0, 0.5])[2] < to_clip(camera, [0.0, 0.0, -0.5])[2]


def test_jitter_moves_the_object_in_the_image_plane():
    plain, shifted = one_camera(), one_camera(shift=(0.3, 0.2))
    moved = to_clip(shifted, [0.0, 0.0, 0.0]) - to_clip(plain, [0.0, 0.0, 0.0])
    assert moved[0] > 0 and moved[1] < 0  # The object moves right and up.


@pytest.mark.parametrize("azimuth", [0.0, 40.0, 90.0, 200.0, -75.0])
def test_view_matches_the_product_of_rotations(azimuth):
    camera = one_camera(azimuth=azimuth, elevation=20.0)
    a, e = math.radians(azimuth), math.radians(20.0)
    # The distance to the origin is 3, and the camera centre is R^T (0, 0, 3).
    expected = torch.tensor([-math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)]) * 3
    assert torch.allclose(camera.position[0], expected, atol=1e-5)


@pytest.mark.parametrize("world_size", range(1, 17))
def test_rank_sectors_tile_the_circle(world_size):
    sectors = min(world_size, 4)
    hits = torch.zeros(360)
    for rank in range(sectors):
        centre, width = azimuth_sector(rank, world_size)
        degrees = torch.arange(centre - width / 2, centre + width / 2)
        hits.index_add_(0, (degrees % 360).long(), torch.ones(len(degrees)))
    assert torch.equal(hits, torch.ones(360))
    assert azimuth_sector(0, world_size)[0] == 0.0
    for rank in range(world_size):
        assert azimuth_sector(rank, world_size) == azimuth_sector(rank % sectors, world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_drawn_azimuths_stay_in_the_sector_and_fill_it(world_size):
    for rank in range(world_size):
        drawn = draw_azimuths(4000, "rank", rank, world_size, step_generator(0, rank, 0))
        centre, width = azimuth_sector(rank, world_size)
        offset = (drawn - centre) / width
        assert offset.min() >= -0.5 and offset.max() <= 0.5
        assert offset.min() < -0.49 and offset.max() > 0.49


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 16])
def test_batch_intervals_hold_one_view_each(count):
    drawn = draw_azimuths(count, "batch", 0, 1, step_generator(3, 0, 7))
    interval = torch.floor(drawn / (360 / count) + 0.5).long()
    assert interval.tolist() == list(range(count))


def test_auto_seed_by_number_of_ranks():
    alone = draw_azimuths(4, "auto", 0, 1, step_generator(1, 0, 1))
    assert torch.equal(alone, draw_azimuths(4, "batch", 0, 1, step_generator(1, 0, 1)))
    company = draw_azimuths(4, "auto", 1, 2, step_generator(1, 1, 1))
    assert torch.equal(company, draw_azimuths(4, "rank", 1, 2, step_generator(1, 1, 1)))


def test_view_indices_follow_the_definition():
    front = 45.0
    for azimuth, index in zip(DEGREES.tolist(), view_indices(DEGREES, front).tolist(), strict=True):
        folded = azimuth
        while folded >= 180:
            folded -= 360
        while folded < -180:
            folded += 360
        if -front <= folded < front:
            expected = 0
        elif folded >= 180 - front or folded < -180 + front:
            expected = 2
        else:
            expected = 1
        assert index == expected, azimuth


def test_a_step_is_a_pure_function_of_its_numbers():
    config = CameraConfig()

    def draw(seed, rank, step):
        return sample_cameras(
            config, 3, (8, 8), step_generator(seed, rank, step), rank=rank, world_size=4, rotate_normals=True
        )

    first, again = draw(1, 2, 3), draw(1, 2, 3)
    assert torch.equal(first.world_to_clip, again.world_to_clip)
    assert torch.equal(first.normal_rotation, again.normal_rotation)
    for other in (draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)):
        assert not torch.equal(first.world_to_clip, other.world_to_clip)


def test_spin_is_a_rotation_and_absent_in_the_fine_phase():
    config = CameraConfig()
    spun = sample_cameras(config, 50, (8, 8), step_generator(0, 0, 0), rotate_normals=True).normal_rotation
    assert torch.allclose(spun @ spun.transpose(1, 2), torch.eye(3).expand(50, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(spun), torch.ones(50), atol=1e-5)
    # One entry of R_x · R_y is always zero. All other entries vary.
    assert (spun.std(0) > 0.1).sum() == 8 and (spun[:, 0, 1] == 0).all()
    still = sample_cameras(config, 5, (8, 8), step_generator(0, 0, 0)).normal_rotation
    assert torch.equal(still, torch.eye(3).repeat(5, 1, 1))


def test_spin_turns_about_y_first_and_then_about_x():
    """The closed form is n' = R_x(b) R_y(a) n.

    n = +y gives n' = (0, cos b, sin b). n = +x gives n' = (cos a, sin a sin b, −sin a cos b). The variance of
    the sine or cosine of a random angle is 1/2. The variance of a product of two such values is 1/4.
    """
    rotation = normal_rotations(torch.rand(2, 40_000, generator=step_generator(0, 0, 0)))
    up, right = rotation[:, :, 1], rotation[:, :, 0]
    assert torch.allclose(up.std(0), torch.tensor([0.0, 0.5**0.5, 0.5**0.5]), atol=0.01)
    assert torch.allclose(right.std(0), torch.tensor([0.5**0.5, 0.5, 0.5]), atol=0.01)
    drawn = sample_cameras(
        CameraConfig(), 4, (8, 8), step_generator(0, 0, 0), rotate_normals=True
    ).normal_rotation
    assert (drawn[:, 0, 1] == 0).all() and not torch.equal(drawn[0], drawn[1])
    quarter = normal_rotations(torch.tensor([[0.25], [0.75]]))[0]  # a = b = 90°
    assert torch.allclose(quarter @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6)
    assert torch.allclose(quarter @ torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0, 1]), atol=1e-6)


def test_ranges_are_kept_and_reached():
    config = CameraConfig(camera_random_jitter=0.2, fovy_range=(30.0, 40.0), elevation_range=(10.0, 20.0))
    cameras = sample_cameras(config, 3000, (8, 8), step_generator(0, 0, 0))
    # The rotation part of world_to_clip does not depend on the jitter of the object, so the angles are
    # computed from this part.
    focal = cameras.world_to_clip[:, :2, :3].norm(dim=-1)[:, 0]
    fovy = 2 * torch.atan(1 / focal).rad2deg()
    assert fovy.min() >= 30 - 1e-3 and fovy.max() <= 40 + 1e-3 and fovy.max() - fovy.min() > 9.9
    up = cameras.world_to_clip[:, 3, 1]
    elevation = torch.asin(-up).rad2deg()
    assert elevation.min() >= 10 - 1e-2 and elevation.max() <= 20 + 1e-2
