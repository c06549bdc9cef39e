"""Test the meshes of the zero level sets of procedural objects with libigl and trimesh."""

import itertools
import math

import igl
import numpy as np
import pytest
import torch
from object_meshes import instance, surface

from dataset.cameras import step_generator
from dataset.procedural import CATEGORIES, ProceduralObject, make_object, solid, vessels
from dataset.procedural import primitives as solids
from dataset.procedural.buildings import blocks
from dataset.procedural.colour import colour, over, spots
from dataset.procedural.materials import HELD_OUT, MATERIALS, dressed
from dataset.procedural.random_draw import Draw


def random_points(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


SEEDS = [0, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", CATEGORIES)
def test_is_one_watertight_centred_piece(kind, seed):
    mesh = surface(kind, seed)
    low, high = mesh.bounds
    assert mesh.is_watertight
    assert mesh.body_count == 1
    np.testing.assert_allclose((low + high) / 2, 0, atol=0.02)
    assert 0.68 < np.linalg.norm(mesh.vertices, axis=1).max() < 0.80
    assert 0.04 < abs(mesh.volume) < 1.3


def test_longest_objects_fit_the_frame():
    # About 1 % of the keys are as long as this key, which extends to 1.41 before scaling.
    key = make_object("key", step_generator(7001, 27, 25, 1))
    tip = torch.stack([torch.zeros(400), torch.linspace(-0.8, 0.0, 400), torch.zeros(400)], -1)
    assert -0.76 < tip[key.signed_distance(tip) < 0, 1].min() < -0.6


@pytest.mark.parametrize("kind", CATEGORIES)
def test_sign_and_size_agree_with_the_mesh(kind):
    mesh, shape = surface(kind, 0), instance(kind, 0)
    points = random_points(1500) * 0.8
    squared, _, _ = igl.point_mesh_squared_distance(points.numpy(), mesh.vertices, mesh.faces)
    distance = torch.from_numpy(np.sqrt(squared))
    inside = torch.from_numpy(igl.fast_winding_number(mesh.vertices, mesh.faces, points.numpy())).abs() > 0.5
    value = shape.signed_distance(points)
    clear = distance > 0.03
    assert torch.equal((value < 0)[clear], inside[clear])
    # With these bounds, sphere tracing neither steps through the surface nor takes very small steps. Inside
    # the object, values may be smaller than the distance.
    assert (value.abs() <= distance * 1.15 + 0.015).all()
    outside = clear & ~inside
    assert (value[outside] >= 0.45 * distance[outside]).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", CATEGORIES)
def test_changes_no_faster_than_distance(kind, seed):
    shape = instance(kind, seed)
    start = random_points(20_000)
    step = torch.nn.functional.normalize(random_points(20_000, 1), dim=-1) * 1e-3
    slope = (shape.signed_distance(start + step) - shape.signed_distance(start)).abs() / 1e-3
    # Points deep inside are excluded, because the distance is singular at the centre of an ellipsoid.
    assert slope[shape.signed_distance(start) > -0.2].max() < 2.0
    assert (slope > 1.2).double().mean() < 5e-3
    near = shape.signed_distance(start).abs() < 0.03
    assert slope[near].max() < 1.5


def test_placement_repeats():
    again = make_object("key", torch.Generator().manual_seed(0))
    assert (again.centre, again.scale) == (instance("key", 0).centre, instance("key", 0).scale)


@pytest.mark.parametrize("kind", CATEGORIES)
def test_seed_decides_the_object(kind, monkeypatch):
    # The placement takes most of the time. Here it places all objects as if they had the same bounds.
    monkeypatch.setattr(solid, "_surface_points", lambda distance: torch.tensor([[-1.0] * 3, [1.0] * 3]))
    points = random_points(2000)
    shapes = [make_object(kind, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    first, again, other = (shape.signed_distance(points) for shape in shapes)
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 2e-3
    kd = [shape.material(points)[0] for shape in shapes]
    assert torch.equal(kd[0], kd[1])
    assert (kd[0] - kd[2]).abs().max() > 5e-3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", CATEGORIES)
def test_materials_are_plausible(kind, seed):
    shape = instance(kind, seed)
    kd, ks = shape.material(torch.from_numpy(surface(kind, 0).vertices).float())
    assert kd.shape == ks.shape and kd.dtype == torch.float32
    assert kd.min() >= 0 and kd.max() <= 0.86
    assert kd.mean() > 0.04
    assert (ks[:, 0] == 0).all()
    assert ks[:, 1].min() >= 0.3 and ks[:, 1].max() <= 0.9
    assert ks[:, 2].min() >= 0 and ks[:, 2].max() <= 1
    assert len(kd.unique(dim=0)) > 1


@pytest.mark.parametrize("kind", CATEGORIES)
def test_follows_the_dtype_of_the_points(kind):
    shape, points = instance(kind, 0), random_points(5000)
    coarse, fine = shape.signed_distance(points.float()), shape.signed_distance(points)
    assert coarse.dtype == torch.float32 and fine.dtype == torch.float64
    # Rounding can move a few points across the border of a cell, so the values of these points differ more.
    assert ((coarse - fine).abs() > 1e-4).sum() <= 3


@pytest.mark.gpu
@pytest.mark.parametrize("kind", CATEGORIES)
def test_follows_the_device_of_the_points(kind):
    shape, points = instance(kind, 0), random_points(5000)
    kd, ks = shape.material(points.cuda())
    assert kd.is_cuda and ks.is_cuda
    difference = shape.signed_distance(points.cuda()).cpu() - shape.signed_distance(points)
    assert (difference.abs() > 1e-4).sum() <= 3


@pytest.mark.parametrize("seed", range(2))
def test_mug_has_one_handle_and_a_cavity(seed):
    assert surface("mug", seed).euler_number == 0  # This is 2 − 2·genus with genus 1 (the handle).
    mug = instance("mug", seed)
    box = surface("mug", seed).bounds
    radius = (box[1, 2] - box[0, 2]) / 2
    axis_x = box[0, 0] + radius
    at_axis = torch.tensor(
        [[axis_x, 0.0, 0.0], [axis_x, 0.9 * box[1, 1], 0.0], [axis_x, box[0, 1] + 0.03, 0.0]]
    )
    middle, top, floor = mug.signed_distance(at_axis).tolist()
    assert middle > 0.2 and top > 0.2 and floor < 0
    # A ray along +x from the wall first crosses the hole, which is at least 0.16 wide, and then the handle.
    x = torch.linspace(axis_x, box[1, 0], 400)
    ray = torch.stack([x, torch.full_like(x, 0.0), torch.zeros_like(x)], -1)
    outside = x[(mug.signed_distance(ray) > 0) & (x > axis_x + 0.9 * radius)]
    assert outside.max() - outside.min() > 0.16


def test_chair_has_its_back_at_minus_z_and_stands_on_four_legs():
    for seed in range(2):
        mesh = surface("chair", seed)
        vertices = mesh.vertices
        assert vertices[vertices[:, 1] > 0.3][:, 2].max() < 0
        section = mesh.section(plane_origin=[0, vertices[:, 1].min() + 0.1, 0], plane_normal=[0, 1, 0])
        assert len(section.discrete) == 4


def test_teapot_has_one_handle_and_its_spout_at_plus_x():
    mesh = surface("teapot", 0)
    assert mesh.euler_number == 0
    heights = mesh.vertices[:, 1]
    right = heights[mesh.vertices[:, 0] > mesh.bounds[1, 0] - 0.03]
    left = heights[mesh.vertices[:, 0] < mesh.bounds[0, 0] + 0.03]
    # The spout ends near the top. The outermost part of the handle is at half height.
    assert right.mean() > left.mean() + 0.05


def test_car_is_longest_along_z_and_has_dark_windows_and_wheels():
    extents = surface("car", 0).extents
    assert extents[2] > 1.7 * extents[0] and extents[0] > 0.9 * extents[1]
    names = {part.name for part in instance("car", 0).parts}
    assert {"body", "tyres", "bumpers"} <= names
    # The upper part of the cabin has dark windows on all four sides. The roof has the colour of the body.
    mesh = surface("car", 0)
    kd = instance("car", 0).material(torch.from_numpy(mesh.vertices).float())[0]
    dark = kd.amax(1) < 0.3
    height = torch.from_numpy(mesh.vertices[:, 1])
    top = mesh.bounds[1, 1]
    windows = (height > top - 0.2) & (height < top - 0.06)
    normal = torch.from_numpy(mesh.vertex_normals.copy())
    for direction in ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)):
        facing = normal[:, 0] * direction[0] + normal[:, 2] * direction[1] > 0.5
        assert dark[windows & facing].double().mean() > 0.4
    assert not dark[height > top - 0.01].any()


@pytest.mark.parametrize("name, kind", [("crown", "pineapple"), ("cap", "strawberry")])
def test_leaves_are_green_above_a_warm_body(name, kind):
    vertices = torch.from_numpy(surface(kind, 0).vertices)
    kd, _ = instance(kind, 0).material(vertices)
    top, low = kd[vertices[:, 1] > 0.5].mean(0), kd[vertices[:, 1] < 0].mean(0)
    assert top[1] > 1.5 * top[0] and low[0] > 1.3 * low[1] > low[2]


def test_default_colours_lead(monkeypatch):
    """About half of the mugs are blue."""
    # The placement is omitted, because it takes most of the time and does not change the colours.
    monkeypatch.setattr(vessels, "place", ProceduralObject)
    on_handle = (torch.full((1,), 0.65), torch.zeros(1), torch.zeros(1))
    mugs = [make_object("mug", torch.Generator().manual_seed(seed)) for seed in range(40)]
    mugs = [mug.parts[0].albedo(on_handle)[0] for mug in mugs]
    blue = sum(bool(c[2] > 2 * c[1] and c[2] > 3 * c[0]) for c in mugs)
    assert 12 <= blue <= 28
    assert len({tuple(round(v, 1) for v in c.tolist()) for c in mugs}) > 4


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="unicorn.*pineapple"):
        make_object("unicorn", torch.Generator())


def test_round_cone_is_the_union_of_its_spheres():
    points = random_points(200)
    start, end = torch.tensor([0.1, -0.3, 0.2]).double(), torch.tensor([-0.2, 0.4, 0.1]).double()
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None, None]
    slow = ((points - start - t * (end - start)).norm(dim=-1) - (0.3 + t[..., 0] * (0.1 - 0.3))).amin(0)
    fast = solids.round_cone(points.unbind(-1), tuple(start.tolist()), tuple(end.tolist()), 0.3, 0.1)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)


def test_box_and_polygon_agree_on_a_rectangle():
    x, y, _ = random_points(2000).unbind(-1)
    corners = [(-0.5, -0.3), (0.5, -0.3), (0.5, 0.3), (-0.5, 0.3)]
    torch.testing.assert_close(solids.polygon(x, y, corners), solids.box2(x, y, (0.5, 0.3)))
    torch.testing.assert_close(solids.polygon(x, y, corners[::-1]), solids.box2(x, y, (0.5, 0.3)))


def test_polyline_is_the_distance_to_its_nearest_point():
    x, y, _ = random_points(300).unbind(-1)
    corners = [(-0.5, -0.3), (0.2, -0.3), (0.4, 0.6)]
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    dense = [
        torch.hypot(x - (ax + t * (bx - ax)), y - (ay + t * (by - ay))).amin(0)
        for (ax, ay), (bx, by) in itertools.pairwise(corners)
    ]
    torch.testing.assert_close(solids.polyline(x, y, corners), torch.minimum(*dense), atol=1e-3, rtol=0)


def test_ellipsoid_is_exact_on_a_sphere():
    p = random_points(500).unbind(-1)
    torch.testing.assert_close(
        solids.ellipsoid(p, (0.1, 0.2, 0.0), (0.4, 0.4, 0.4)), solids.sphere(p, (0.1, 0.2, 0.0), 0.4)
    )


def test_sectors_repeat_a_solid():
    points = random_points(500)
    five = solids.sphere(solids.sectors(points.unbind(-1), 5, 0.3), (0.0, 0.1, 0.5), 0.1)
    centres = [
        (0.5 * math.sin(0.3 + k * 2 * math.pi / 5), 0.1, 0.5 * math.cos(0.3 + k * 2 * math.pi / 5))
        for k in range(5)
    ]
    slow = solids.union(*(solids.sphere(points.unbind(-1), centre, 0.1) for centre in centres))
    torch.testing.assert_close(five, slow)


@pytest.mark.parametrize(
    "turn, source, target",
    [
        (solids.turn_x, (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        (solids.turn_y, (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)),
    ],
)
def test_turns_follow_the_right_hand(turn, source, target):
    """A rotation by 90° moves a solid from `source` to `target`."""
    p = tuple(torch.tensor([v], dtype=torch.float64) for v in target)
    assert solids.sphere(turn(p, math.pi / 2), source, 0.1).item() == pytest.approx(-0.1)


def test_spots_keep_their_spacing():
    """The centres of two spots on the sphere are at least about one spacing apart."""
    polar, azimuth = torch.meshgrid(
        torch.linspace(0.0, 2.6, 350, dtype=torch.float64),
        torch.linspace(-math.pi, math.pi, 700, dtype=torch.float64),
        indexing="ij",
    )
    along, across = spots(azimuth.flatten(), polar.flatten(), 0.6)
    on = along.hypot(across) < 0.015
    a, p = azimuth.flatten()[on], polar.flatten()[on]
    directions = torch.stack([a.sin() * p.sin(), p.cos(), a.cos() * p.sin()], -1)
    apart = torch.cdist(directions, directions)
    assert ((apart < 0.05) | (apart > 0.45)).all()
    assert on.sum() > 20


def test_blocks_of_neighbouring_rows_are_offset_by_half_a_block():
    along, up = torch.tensor([[0.0, 0.1, 0.05], [0.025, 0.025, 0.075]], dtype=torch.float64)
    joint, own = blocks(along, up, 0.1, 0.05)
    torch.testing.assert_close(joint, torch.zeros(3).double(), atol=1e-12, rtol=0)
    middle, _ = blocks(along + 0.05, up, 0.1, 0.05)
    torch.testing.assert_close(middle, torch.full((3,), 0.025).double())
    assert ((own >= 0) & (own < 1)).all()


def test_over_covers_the_base_by_the_weight():
    base, weight = torch.tensor([[0.1, 0.2, 0.3]]).expand(3, 3), torch.tensor([0.0, 0.5, 1.0])
    covered = over(base, (0.5, 0.6, 0.7), weight)
    torch.testing.assert_close(covered, base + 0.4 * weight[:, None])


def test_colour_codes_are_decoded_to_linear():
    assert colour("#808080") == pytest.approx((0.2158605,) * 3, abs=1e-6)
    assert colour("#ffffff") == (0.85,) * 3


@pytest.mark.parametrize("name", MATERIALS)
def test_a_material_repaints_and_keeps_the_shape(name):
    own = instance("mug", 0)
    worn = dressed(own, name, Draw(torch.Generator().manual_seed(0)))
    points = random_points(4000)
    assert torch.equal(own.signed_distance(points), worn.signed_distance(points))
    kd, ks = worn.material(points)
    assert 0 <= kd.min() and kd.max() <= 0.86
    assert (ks[:, 2] == (1.0 if name in ("golden", "silver") else 0.0)).all()
    assert 0.3 <= ks[:, 1].min() and ks[:, 1].max() <= 0.9
    # Only the brightness varies within the material, so the colour of each point is a multiple of one colour.
    unit = torch.nn.functional.normalize(kd[kd.max(1).values < 0.84], dim=-1)
    assert (unit - unit[0]).norm(dim=-1).max() < 1e-3


def test_materials_differ_and_keep_dark_parts_darker():
    own = instance("car", 0)
    points = torch.from_numpy(surface("car", 0).vertices).float()
    luminance = own.material(points)[0] @ torch.tensor([0.2126, 0.7152, 0.0722])
    colours = {}
    for name in MATERIALS:
        kd, _ = dressed(own, name, Draw(torch.Generator().manual_seed(0))).material(points)
        colours[name] = kd.mean(0)
        assert kd[luminance < 0.06].mean() < 0.8 * kd[luminance > 0.3].mean()
    for first, second in itertools.combinations(set(MATERIALS) - {"white", "silver", "stone", "wooden"}, 2):
        assert (colours[first] - colours[second]).norm() > 0.05, (first, second)


def test_unknown_material_is_named():
    with pytest.raises(ValueError, match="'plaid'.*wooden"):
        dressed(instance("mug", 0), "plaid", Draw(torch.Generator()))


def test_held_out_pairs_exist():
    assert len(HELD_OUT) >= 12
    assert {name for _, name in HELD_OUT} <= set(MATERIALS)
    assert len({kind for kind, _ in HELD_OUT}) == len(HELD_OUT)
