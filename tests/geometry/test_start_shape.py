"""Test start shapes against closed forms and an independent projection, and test the batches of the fit.

Open meshes and meshes with flipped faces are included.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from scipy.optimize import brentq

from geometry.start_shape import (
    START_SHAPES,
    FitPool,
    StartShape,
    StartShapeConfig,
    build_start_shape,
    make_fit_pool,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def box_points_in(count: int, half: float = 1.2) -> torch.Tensor:
    return (torch.rand(count, 3, generator=seeded(5)) * 2 - 1) * half


def ellipsoid_distance(point: np.ndarray, axes: np.ndarray) -> float:
    """Compute the signed distance to an axis-aligned ellipsoid with the Lagrange multiplier method."""

    def excess(t):
        return np.sum((axes * point / (axes**2 + t)) ** 2) - 1

    t = brentq(excess, -(axes.min() ** 2) + 1e-12, 100.0, xtol=1e-14)
    nearest = axes**2 * point / (axes**2 + t)
    return float(np.linalg.norm(point - nearest)) * (1 if t > 0 else -1)


def cylinder_distance(points: torch.Tensor) -> torch.Tensor:
    side, cap = points[:, :2].norm(dim=-1) - 0.75, points[:, 2].abs() - 0.4
    outside = torch.stack([side, cap]).clamp_min(0).norm(dim=0)
    return outside + torch.maximum(side, cap).clamp_max(0)


def test_anisotropic_ellipsoid_has_exact_distances():
    axes = (0.4, 0.9, 0.6)
    shape = build_start_shape(StartShapeConfig(sdf_init_shape_scale=axes))
    points = box_points_in(300)
    expected = [ellipsoid_distance(point, np.array(axes)) for point in points.double().numpy()]
    assert shape.signed_distance(points).numpy() == pytest.approx(expected, abs=2e-4)
    assert min(expected) < -0.1


def test_distance_of_a_point_does_not_depend_on_the_other_points():
    shape, points = build_start_shape(StartShapeConfig(sdf_init_shape="cylinder")), box_points_in(8)
    alone = torch.cat([shape.signed_distance(point[None]) for point in points])
    assert torch.equal(shape.signed_distance(points), alone)
    assert shape.signed_distance(points[:0]).shape == (0,)


def test_cylinder_closed_form():
    points = box_points_in(2000)
    distance = build_start_shape(StartShapeConfig(sdf_init_shape="cylinder")).signed_distance(points)
    assert (distance - cylinder_distance(points)).abs().max() < 2e-4


def test_scale_then_rotation_then_translation():
    config = StartShapeConfig(
        sdf_init_shape_scale=(0.3, 0.5, 0.9),
        sdf_init_shape_rotate_x=30.0,
        translation_y=-0.3,
        translation_z=0.2,
    )
    points = box_points_in(200)
    angle = math.radians(30)
    # To transform the points back, invert the translation first, then the rotation.
    x, y, z = (points - torch.tensor([0.0, -0.3, 0.2])).unbind(-1)
    back = torch.stack(
        [x, math.cos(angle) * y + math.sin(angle) * z, -math.sin(angle) * y + math.cos(angle) * z], -1
    )
    plain = build_start_shape(StartShapeConfig(sdf_init_shape_scale=(0.3, 0.5, 0.9)))
    moved = build_start_shape(config)
    assert torch.allclose(moved.signed_distance(points), plain.signed_distance(back), atol=1e-5)


def test_rotation_by_ninety_degrees_turns_the_cylinder_upright():
    config = StartShapeConfig(sdf_init_shape="cylinder", sdf_init_shape_rotate_x=90.0)
    height = build_start_shape(config).v_pos.amax(0)
    assert height.tolist() == pytest.approx([0.75, 0.4, 0.75], abs=1e-9)


@pytest.fixture
def ball(tmp_path):
    """Return a function that writes the mesh of a ball to a file and builds a start shape from the file.

    keep: a function from face centres to a mask of the faces to keep. flip: a mask of the faces to flip.
    turn_all: flip all faces.
    """

    def make(keep=None, flip=None, turn_all=False):
        sphere = trimesh.creation.icosphere(subdivisions=4)
        faces = sphere.faces.copy()
        if flip is not None:
            faces[flip] = faces[flip][:, ::-1]
        faces = faces if keep is None else faces[keep(sphere.triangles_center)]
        faces = faces[:, ::-1] if turn_all else faces
        path = tmp_path / "ball.ply"
        trimesh.Trimesh(sphere.vertices * 3 + [5, 0, 0], faces, process=False).export(path)
        return build_start_shape(StartShapeConfig(sdf_init_shape="custom_mesh", base_mesh=str(path)))

    return make


def wrong_signs(shape, points: torch.Tensor, clear: float = 0.05) -> float:
    """Return the share of wrong signs among the points that are farther than `clear` from the unit sphere."""
    expected = points.norm(dim=-1) - 1
    far = expected.abs() > clear
    return ((shape.signed_distance(points) < 0) != (expected < 0))[far].float().mean().item()


def test_custom_mesh_is_centred_and_normalised(ball):
    shape = ball()
    assert shape.v_pos.norm(dim=-1).max().item() == pytest.approx(1)
    points = box_points_in(1000)
    assert (shape.signed_distance(points) - (points.norm(dim=-1) - 1)).abs().max() < 5e-3


def test_mesh_with_a_hole_keeps_its_sign(ball):
    shape = ball(keep=lambda centre: centre[:, 2] < 0.9)
    # A start shape is moved so that the mean of its vertices is 0. Without the cap this mean is not the
    # centre of the sphere, so the centre is computed here.
    sphere_centre = (shape.v_pos.amax(0) + shape.v_pos.amin(0)) / 2
    points = box_points_in(4000)
    points = points[points[:, 2] < 0.75]
    radius = (shape.v_pos[:, 0].amax() - shape.v_pos[:, 0].amin()).item() / 2
    expected = (
        points - torch.tensor([sphere_centre[0], sphere_centre[1], shape.v_pos[:, 2].amin() + radius])
    ).norm(dim=-1) - radius
    far = expected.abs() > 0.05
    assert ((shape.signed_distance(points) < 0) != (expected < 0))[far].float().mean() < 0.005


def test_open_half_sphere_is_closed_by_a_flat_cap(ball):
    shape = ball(keep=lambda centre: centre[:, 2] < 0)
    rim = shape.v_pos[:, 2].amax().item()
    side = torch.rand(500, 2, generator=seeded()) - 0.5
    for height, inside in ((-0.1, True), (0.1, False), (0.3, False)):
        points = torch.cat([side, torch.full((500, 1), rim + height)], -1)
        assert ((shape.signed_distance(points) < 0) == inside).all()


def test_flipped_faces_change_neither_sign_nor_distance(ball):
    flip = np.random.default_rng(0).random(5120) < 0.1
    shape, points = ball(flip=flip), box_points_in(4000)
    assert wrong_signs(shape, points) < 0.01
    assert torch.allclose(
        shape.signed_distance(points).abs(), ball().signed_distance(points).abs(), atol=1e-6
    )


def test_inverted_mesh(ball):
    assert wrong_signs(ball(turn_all=True), box_points_in(2000)) == 0


def test_surface_points_are_uniform_by_area_and_on_the_surface():
    shape = build_start_shape(StartShapeConfig(sdf_init_shape="cylinder"))
    points = shape.sample_surface(40_000, seeded())
    assert shape.signed_distance(points).abs().max() < 1e-5
    on_caps = (points[:, 2].abs() > 0.4 - 1e-6).float().mean().item()
    caps, side = 2 * math.pi * 0.75**2, 2 * math.pi * 0.75 * 0.8
    assert on_caps == pytest.approx(caps / (caps + side), abs=0.01)
    # For a uniform disc the mean of x² is r² / 4.
    cap = points[points[:, 2] > 0.4 - 1e-6]
    assert cap[:, 0].square().mean().item() == pytest.approx(0.75**2 / 4, rel=0.03)
    assert torch.equal(points, shape.sample_surface(40_000, seeded()))


def test_points_spread_evenly_within_a_triangle():
    shape = StartShape(torch.eye(3, dtype=torch.float64), torch.tensor([[0, 1, 2]]))
    barycentric = shape.sample_surface(20_000, seeded())
    assert barycentric.min() >= 0 and torch.allclose(barycentric.sum(-1), torch.ones(20_000))
    # The uniform density on a triangle has the moments E[b] = 1/3 and E[b²] = 1/6.
    assert barycentric.mean(0).tolist() == pytest.approx([1 / 3] * 3, rel=0.02)
    assert barycentric.square().mean(0).tolist() == pytest.approx([1 / 6] * 3, rel=0.03)


def test_fit_pool_groups_and_distances():
    shape = build_start_shape(StartShapeConfig(sdf_init_shape_scale=(0.5, 0.5, 0.5)))
    box_points = box_points_in(1500, half=1.0)
    pool = make_fit_pool(shape, box_points, seeded(), surface=2000)
    expected = pool.points.norm(dim=-1) - 0.5
    assert (pool.distances - expected).abs().max() < 2e-4
    assert pool.distances[:2000].abs().max() == 0
    offsets = pool.points[2000:4000] - pool.points[:2000]
    assert offsets.std(0).tolist() == pytest.approx([0.05] * 3, rel=0.1)
    assert torch.equal(pool.points[4000:], box_points)
    part = make_fit_pool(shape, box_points, seeded(), surface=20, box_limit=100)
    assert len(set(map(tuple, part.points[40:].tolist()))) == 100
    assert set(map(tuple, part.points[40:].tolist())) <= set(map(tuple, box_points.tolist()))


def test_fit_batches_are_a_function_of_the_generator():
    points = torch.arange(250.0)[:, None].expand(-1, 3)
    pool = FitPool(points, torch.arange(250.0), surface_count=100)
    batch, distances = pool.draw(seeded(7))
    assert batch.shape == (13_000, 3) and torch.equal(batch[:, 0], distances)
    assert torch.equal(distances[5000:10_000], distances[:5000] + 100)
    assert set(distances[10_000:].tolist()) == set(range(200, 250))
    assert torch.equal(distances, pool.draw(seeded(7))[1])
    assert not torch.equal(distances, pool.draw(seeded(8))[1])


def test_shape_outside_the_box_is_an_error():
    shape = build_start_shape(StartShapeConfig(sdf_init_shape_scale=(0.2, 0.2, 0.2), translation_y=5.0))
    with pytest.raises(ValueError, match="translation_y"):
        make_fit_pool(shape, box_points_in(500), seeded(), surface=100)


def test_bad_configs():
    with pytest.raises(ValueError, match="base_mesh"):
        StartShapeConfig(sdf_init_shape="custom_mesh")
    with pytest.raises(ValueError, match="ellipsoid"):
        StartShapeConfig(sdf_init_shape="cube")
    with pytest.raises(ValueError, match="greater than 0"):
        StartShapeConfig(sdf_init_shape_scale=(1, 0, 1))
    missing = StartShapeConfig(sdf_init_shape="custom_mesh", base_mesh="nowhere.obj")
    with pytest.raises(FileNotFoundError, match="nowhere.obj"):
        build_start_shape(missing)


@pytest.mark.parametrize("name", START_SHAPES)
def test_every_start_shape_is_closed_faces_outward_and_is_of_unit_size(name):
    mesh = str(Path(__file__).parents[2] / "data/person/person.obj")
    shape = build_start_shape(StartShapeConfig(sdf_init_shape=name, base_mesh=mesh))
    solid = trimesh.Trimesh(shape.v_pos.numpy(), shape.faces.numpy(), process=False)
    assert solid.is_watertight and solid.volume > 0
    assert 0.7 < float(shape.v_pos.norm(dim=-1).max()) < 1.3
