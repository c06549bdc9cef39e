"""Test characteristic features of food, vases, tools and furniture on meshes of the zero level set."""

import numpy as np
import pytest
import torch
from object_meshes import instance, surface
from torch import Tensor

every_seed = pytest.mark.parametrize("seed", range(2))


def is_inside(kind: str, seed: int, *points: tuple[float, float, float]) -> list[bool]:
    return (instance(kind, seed).signed_distance(torch.tensor(points)) < 0).tolist()


def painted(kind: str, seed: int) -> tuple[np.ndarray, Tensor]:
    """Return the vertices of the surface and their albedo."""
    vertices = surface(kind, seed).vertices
    return vertices, instance(kind, seed).material(torch.from_numpy(vertices))[0]


def outlines(kind: str, seed: int, height: float) -> list[np.ndarray]:
    """Return the closed outlines of the horizontal section at this height. Each outline is [n, 3]."""
    return surface(kind, seed).section(plane_origin=[0, height, 0], plane_normal=[0, 1, 0]).discrete


@every_seed
def test_banana_is_a_yellow_bow_with_raised_ends(seed):
    vertices, kd = painted("banana", seed)
    low, high = surface("banana", seed).bounds
    assert high[0] - low[0] > 1.5 * (high[1] - low[1]) > 2.5 * (high[2] - low[2])
    for end in (vertices[:, 0] > high[0] - 0.1, vertices[:, 0] < low[0] + 0.1):
        assert vertices[end, 1].min() > low[1] + 0.2  # Both ends are raised.
    # The space above the middle is empty.
    assert is_inside("banana", seed, (0, low[1] + 0.1, 0), (0, 0.1, 0)) == [True, False]
    middle = kd[np.abs(vertices[:, 0]) < 0.3].median(0).values
    assert middle[0] > 0.4 and middle[1] > 0.35 and middle[2] < 0.2


@every_seed
def test_hamburger_is_a_stack_with_meat_cheese_and_lettuce_between_two_buns(seed):
    hamburger = instance("hamburger", seed)
    vertices, kd = painted("hamburger", seed)
    red, green, blue = kd.unbind(-1)
    meat, leaf = (red < 0.16) & (green < 0.06), green > 1.3 * red
    cheese = (red > 0.6) & (green > 0.3) & (blue < 0.15)
    height = torch.from_numpy(vertices[:, 1])
    assert height[meat].mean() < height[cheese].mean() + 0.05 < height[leaf].mean() + 0.05
    ends = (height < height.min() + 0.1) | (height > height.max() - 0.15)
    assert not (ends & (meat | leaf)).any()
    assert {"lower bun", "patty", "cheese", "lettuce", "upper bun"} <= {part.name for part in hamburger.parts}
    assert surface("hamburger", seed).euler_number == 2  # There are no gaps between the layers.


@every_seed
def test_donut_is_a_ring_about_z_with_its_icing_in_front(seed):
    assert surface("donut", seed).euler_number == 0
    low, high = surface("donut", seed).bounds
    assert is_inside("donut", seed, *((0.0, 0.0, z) for z in np.linspace(-0.5, 0.5, 11))) == [False] * 11
    across = torch.linspace(-0.75, 0.75, 301)
    hole = (
        instance("donut", seed).signed_distance(torch.stack([across * 0, across, across * 0], -1)) > 0
    ) & (across.abs() < 0.5)
    assert hole.sum() * 0.005 > 0.3
    vertices, kd = painted("donut", seed)
    front, back = kd[vertices[:, 2] > 0.5 * high[2]], kd[vertices[:, 2] < 0.5 * low[2]]
    assert (front.median(0).values - back.median(0).values).abs().max() > 0.1


@every_seed
def test_vase_is_open_above_a_deep_cavity_with_a_neck_narrower_than_belly_and_lip(seed):
    low, high = surface("vase", seed).bounds
    column = [(0.0, y, 0.0) for y in np.linspace(low[1] + 0.2, high[1] + 0.05, 30)]
    assert not any(is_inside("vase", seed, *column))
    assert is_inside("vase", seed, (0.0, low[1] + 0.06, 0.0)) == [True]
    widths = [
        max(np.ptp(line[:, 0]) for line in outlines("vase", seed, y))
        for y in np.linspace(low[1] + 0.03, high[1] - 0.03, 24)
    ]
    # The two outlines are the outer and the inner side of the wall.
    assert all(len(outlines("vase", seed, y)) == 2 for y in (-0.2, 0.0, 0.3, 0.5))
    belly = int(np.argmax(widths[:18]))
    neck = belly + int(np.argmin(widths[belly:]))
    assert widths[belly] > 1.4 * widths[neck] and widths[-1] > 1.15 * widths[neck]


@every_seed
def test_hammer_has_its_head_on_top_face_at_plus_x_claw_at_minus_x(seed):
    low, high = surface("hammer", seed).bounds
    (handle,) = outlines("hammer", seed, -0.1)
    head = surface("hammer", seed).vertices[surface("hammer", seed).vertices[:, 1] > high[1] - 0.2]
    assert np.ptp(head[:, 0]) > 4 * np.ptp(handle[:, 0]) and np.ptp(head[:, 2]) > 1.3 * np.ptp(handle[:, 2])
    vertices = surface("hammer", seed).vertices
    face, claw = vertices[vertices[:, 0] > high[0] - 0.03], vertices[vertices[:, 0] < low[0] + 0.08]
    assert face[:, 1].mean() > claw[:, 1].mean() + 0.08  # The claw bends down.
    assert (np.abs(claw[:, 2]) > 0.02).all()  # The claw is split.
    _, ks = instance("hammer", seed).material(
        torch.from_numpy(np.stack([face[0], vertices[vertices[:, 1].argmin()]]))
    )
    assert ks[0, 2] > 0.3 and ks[1, 2] == 0


@every_seed
def test_key_has_a_hole_in_its_ring_above_and_teeth_at_plus_x_below(seed):
    assert surface("key", seed).euler_number == 0
    low, high = surface("key", seed).bounds
    assert high[2] - low[2] < 0.2 * (high[1] - low[1])
    vertices = surface("key", seed).vertices
    middle = (vertices[vertices[:, 1] > high[1] - 0.1].mean(0)[0], high[1] - 0.29, 0.0)
    assert instance("key", seed).signed_distance(torch.tensor([middle], dtype=torch.float32)).item() > 0.09
    shaft = float(middle[0])
    bit = vertices[vertices[:, 1] < low[1] + 0.5]
    assert bit[:, 0].max() - shaft > 2 * (shaft - bit[:, 0].min())
    comb = torch.tensor([(shaft + 0.19, y, 0.0) for y in np.linspace(low[1], low[1] + 0.6, 241)])
    inside = instance("key", seed).signed_distance(comb) < 0
    assert (inside[1:] & ~inside[:-1]).sum() in (2, 3)


@every_seed
def test_table_is_a_board_on_four_legs_with_open_space_below(seed):
    low, high = surface("table", seed).bounds
    legs = outlines("table", seed, low[1] + 0.08)
    assert len(legs) == 4
    quadrants = {(bool(leg[:, 0].mean() > 0), bool(leg[:, 2].mean() > 0)) for leg in legs}
    assert len(quadrants) == 4
    assert min(np.ptp(leg[:, axis]) for leg in legs for axis in (0, 2)) > 0.09
    open_space = [(x, y, z) for x in (-0.2, 0, 0.2) for y in (low[1] + 0.05, -0.05) for z in (-0.1, 0, 0.1)]
    assert not any(is_inside("table", seed, *open_space))
    assert is_inside("table", seed, (0.0, high[1] - 0.04, 0.0)) == [True]


@every_seed
def test_lamp_has_a_wide_hollow_shade_on_a_thin_pole_on_a_foot(seed):
    low, high = surface("lamp", seed).bounds
    wide = {}
    for name, y in (("foot", low[1] + 0.06), ("shade", high[1] - 0.12)):
        wide[name] = max(np.ptp(line[:, 0]) for line in outlines("lamp", seed, y))
    vertices = surface("lamp", seed).vertices
    rim = vertices[:, 1][np.hypot(vertices[:, 0], vertices[:, 2]) > high[0] - 0.04].min()
    pole = max(np.ptp(line[:, 0]) for line in outlines("lamp", seed, rim - 0.06))
    assert 0.09 < pole < 0.5 * min(wide["foot"], wide["shade"])
    assert high[0] > wide["shade"] / 2  # The shade is wider at the bottom.
    # The outlines are the outer and inner side of the shade, and the bulb or the pole.
    assert len(outlines("lamp", seed, rim + 0.08)) >= 3


@every_seed
def test_bed_has_its_pillow_and_the_higher_board_at_minus_z(seed):
    bed, (low, high) = instance("bed", seed), surface("bed", seed).bounds
    assert high[2] - low[2] > 1.2 * (high[0] - low[0])
    vertices, kd = painted("bed", seed)
    at_head, at_foot = vertices[:, 2] < low[2] + 0.1, vertices[:, 2] > high[2] - 0.1
    assert vertices[at_head, 1].max() > vertices[at_foot, 1].max() + 0.1
    assert len(outlines("bed", seed, low[1] + 0.05)) == 4
    points = torch.from_numpy(vertices).float()
    own = (points / bed.scale + torch.tensor(bed.centre)).unbind(-1)
    pillow = next(part for part in bed.parts if part.name == "pillow")
    on_pillow = pillow.distance(own).abs().numpy() < 0.01
    assert vertices[on_pillow, 2].max() < 0 and kd[on_pillow].median() > 0.5
