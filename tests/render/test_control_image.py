"""Compare control images of a ball and of a flat square with closed forms."""

import math

import pytest
import torch
import trimesh

from render.camera import look_at_origin, orbit
from render.control_image import control_image
from render.gbuffer import rasterize_gbuffer
from render.mesh import make_mesh
from render.raster.select import choose_rasteriser

SIDE = 48
RASTERISER = choose_rasteriser(torch.device("cpu"))
RADIUS = 0.7


def drawn(kind, mesh, cameras):
    points = rasterize_gbuffer(mesh, cameras, RASTERISER)
    image = control_image(kind, points, cameras, mesh, RASTERISER)
    assert image.shape == (*points.rast.shape[:3], 3) and 0 <= image.min() and image.max() <= 1
    return image


@pytest.fixture(scope="module")
def ball():
    shape = trimesh.creation.icosphere(subdivisions=4, radius=RADIUS)
    return make_mesh(torch.tensor(shape.vertices).float(), torch.tensor(shape.faces))


def rays():
    """Return the points where the rays of the pixels meet the ball, or NaN for rays that miss it.

    The points are in camera coordinates, in which the camera is at the origin.
    """
    tangent = math.tan(math.radians(45.0) / 2)
    grid = ((torch.arange(SIDE) + 0.5) / SIDE * 2 - 1) * tangent
    direction = torch.stack(
        [grid.expand(SIDE, SIDE), -grid[:, None].expand(SIDE, SIDE), -torch.ones(SIDE, SIDE)], -1
    )
    square, along = direction.square().sum(-1), 3 * direction[..., 2]
    distance = (-along - (along.square() - square * (9 - RADIUS**2)).sqrt()) / square
    return direction * distance[..., None]


def inside(values):
    """Return a mask of pixels whose neighbours are all covered. Antialiasing does not change these pixels."""
    return -torch.nn.functional.max_pool2d(-values[None, None], 3, 1, 1)[0, 0] > 0


def test_depth_is_the_inverse_distance_along_the_view_direction(ball):
    hit = rays()
    near, far = 3 - RADIUS, 3 + RADIUS
    expected = (1 / -hit[..., 2] - 1 / far) / (1 / near - 1 / far)
    image = drawn("depth", ball, orbit(3, (SIDE, SIDE)))
    kept = inside((~expected.isnan()).float())
    assert kept.sum() > 200
    for view in image:
        assert torch.equal(view[..., 0], view[..., 1]) and torch.equal(view[..., 0], view[..., 2])
        assert (view[..., 0] - expected)[kept].abs().max() < 0.02
        assert view[0, 0].tolist() == [0, 0, 0]
    assert image[0][kept].max() > 0.99 and image[0][kept].min() > 0.3


def test_normals_are_in_camera_axes_with_x_right_y_up_and_z_to_the_viewer(ball):
    hit = rays()
    normal = (hit - torch.tensor([0.0, 0.0, -3.0])) / RADIUS
    kept = inside((~normal[..., 0].isnan()).float())
    image = drawn("normal", ball, orbit(4, (SIDE, SIDE), elevation_degrees=30.0))
    for view in image:
        assert (view - (normal * 0.5 + 0.5))[kept].abs().max() < 0.03
        assert torch.allclose(view[0, 0], torch.tensor([0.5, 0.5, 1.0]))
    right, top = image[0, SIDE // 2, SIDE // 2 + 8], image[0, SIDE // 2 - 8, SIDE // 2]
    assert right[0] > 0.7 and abs(right[1] - 0.5) < 0.05
    assert top[1] > 0.7 and abs(top[0] - 0.5) < 0.05


def test_normals_of_controlnet_1_1_have_x_to_the_left(ball):
    cameras = orbit(1, (SIDE, SIDE))
    right, left = (drawn(kind, ball, cameras) for kind in ("normal", "normal_bae"))
    assert (right[..., 0] + left[..., 0] - 1).abs().max() < 1e-5
    assert torch.equal(right[..., 1:], left[..., 1:])


def test_a_square_that_faces_the_camera_is_white_at_every_size():
    for size in (0.1, 0.7):
        corners = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * size
        square = make_mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]))
        image = drawn("depth", square, orbit(1, (SIDE, SIDE), elevation_degrees=0.0))[0]
        assert image[SIDE // 2, SIDE // 2].tolist() == [1, 1, 1] and image[0, 0].tolist() == [0, 0, 0]


def test_the_scale_of_the_object_and_the_field_of_view_do_not_matter(ball):
    """The depth of each view is normalised by its nearest and farthest vertex."""
    angle = torch.zeros(2)
    cameras = look_at_origin(angle, angle, torch.tensor([0.5, 0.9]), (SIDE, SIDE))
    middle = drawn("depth", ball, cameras)[:, SIDE // 2, SIDE // 2, 0]
    assert torch.allclose(middle, torch.ones(2), atol=0.01)
