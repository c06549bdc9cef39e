"""Test features of buildings, vehicles, trees, people and animals. The front of each object is at +z."""

import functools

import igl
import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from dataset.procedural import ProceduralObject, make_object

STEP = 0.03
SEEDS = range(2)
HERE = ("cottage", "castle_tower", "airplane", "boat", "tree", "person", "head", "quadruped", "fish", "bird")


@functools.cache
def instance(kind: str, seed: int) -> ProceduralObject:
    return make_object(kind, torch.Generator().manual_seed(seed))


@functools.cache
def grid() -> Tensor:
    axis = torch.arange(-0.81, 0.811, STEP)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")  # igl requires x to vary fastest.
    return torch.stack([x, y, z], -1).reshape(-1, 3)


@functools.cache
def surface(kind: str, seed: int) -> trimesh.Trimesh:
    side = round(len(grid()) ** (1 / 3))
    values, points = instance(kind, seed).signed_distance(grid()).double().numpy(), grid().double().numpy()
    vertices, faces, *_ = igl.marching_cubes(values, points, side, side, side, 0.0)
    return trimesh.Trimesh(vertices, faces, process=False)


def inside(kind: str, seed: int, *names: str) -> Tensor:
    """Return the grid points inside the named parts. Points that other parts also cover are included."""
    shape = instance(kind, seed)
    assert shape.turn == 0
    own = (grid() / shape.scale + torch.tensor(shape.centre)).unbind(-1)
    chosen = [part for part in shape.parts if part.name in names]
    assert len(chosen) == len(names)
    within = torch.stack([part.distance(own) for part in chosen]).amin(0) < 0.01
    assert within.any()
    return grid()[within]


def colour_of(kind: str, seed: int, name: str) -> Tensor:
    """Return the mean albedo of a part."""
    part = next(part for part in instance(kind, seed).parts if part.name == name)
    return part.albedo(tuple(grid().unbind(-1))).mean(0)


def pieces(kind: str, seed: int, height: float) -> list[float]:
    """Return the areas of the outlines of a horizontal section at `height` above the lowest point."""
    mesh = surface(kind, seed)
    section = mesh.section(plane_origin=[0, mesh.bounds[0, 1] + height, 0], plane_normal=[0, 1, 0])
    areas = []
    for x, _, z in (loop.T for loop in section.discrete):
        areas.append(abs(np.dot(x[:-1], z[1:]) - np.dot(x[1:], z[:-1])) / 2)
    return sorted(areas)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", HERE)
def test_has_no_tunnels_nor_pockets(kind, seed):
    assert surface(kind, seed).euler_number == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_cottage_has_pale_walls_under_a_warm_roof_and_its_door_in_front(seed):
    walls, roof, door = (inside("cottage", seed, name) for name in ("walls", "roof", "door"))
    assert roof[:, 1].mean() > walls[:, 1].mean() + 0.2
    # The roof extends beyond the walls.
    assert roof[:, 0].max() > walls[:, 0].max() and roof[:, 2].max() > walls[:, 2].max()
    assert door[:, 2].min() > 0.2 and door[:, 1].mean() < -0.2
    assert inside("cottage", seed, "chimney")[:, 1].max() > roof[:, 1].max()
    windows = inside("cottage", seed, "windows")[:, 0]
    assert windows.min() < -0.25 and windows.max() > 0.25
    pale, tiles = colour_of("cottage", seed, "walls"), colour_of("cottage", seed, "roof")
    assert pale.min() > 0.25 and pale.min() > 0.6 * pale.max()
    assert tiles[0] > 1.3 * tiles[1] >= tiles[2]


@pytest.mark.parametrize("seed", SEEDS)
def test_castle_tower_is_grey_with_battlements_and_its_door_in_front(seed):
    mesh = surface("castle_tower", seed)
    assert mesh.extents[1] > 1.35 * mesh.extents[0]
    battlements = next(part for part in instance("castle_tower", seed).parts if part.name == "battlements")
    own = torch.cartesian_prod(torch.linspace(0.2, 0.5, 31), torch.linspace(0.6, 1.2, 61))
    # `own` contains points (z, y) of the plane x = 0.
    within = own[battlements.distance((own[:, 0] * 0, own[:, 1], own[:, 0])) < 0]
    radius, top = within[:, 0].mean(), within[:, 1].max() - 0.05
    turn = torch.linspace(0, 2 * torch.pi, 720)
    stone = battlements.distance((radius * turn.sin(), top.expand(720), radius * turn.cos())) < 0
    assert 5 <= (stone[1:] & ~stone[:-1]).sum() <= 8 and 0.35 < stone.double().mean() < 0.75
    door = inside("castle_tower", seed, "door")
    assert door[:, 2].min() > 0.15 and door[:, 1].max() < 0 and door[:, 0].mean().abs() < 0.05
    stone = colour_of("castle_tower", seed, "tower")
    assert stone.min() > 0.6 * stone.max()
    # The top of the tower is wider than the wall below it.
    tower = inside("castle_tower", seed, "tower")
    reach, height = tower[:, [0, 2]].norm(dim=-1), tower[:, 1]
    crown, wall = height > height.max() - 0.06, (height - height.max() + 0.42).abs() < 0.04
    assert reach[crown].max() > 1.1 * reach[wall].max()


@pytest.mark.parametrize("seed", SEEDS)
def test_airplane_has_wings_amidships_and_its_fin_at_the_rear(seed):
    extents = surface("airplane", seed).extents
    assert min(extents[0], extents[2]) > 1.8 * extents[1]
    wings, fin, engines = (inside("airplane", seed, name) for name in ("wings", "tail fin", "engines"))
    tips = wings[wings[:, 0].abs() > 0.5]
    assert tips[:, 0].min() < -0.5 and tips[:, 0].max() > 0.5 and tips[:, 2].abs().max() < 0.5
    assert fin[:, 2].max() < -0.2 and fin[:, 1].max() > surface("airplane", seed).bounds[1, 1] - 0.06
    assert engines[:, 1].mean() < wings[:, 1].mean() - 0.04 and engines[:, 0].abs().min() > 0.12


@pytest.mark.parametrize("seed", SEEDS)
def test_boat_has_a_pointed_bow_in_front_a_cabin_and_a_mast(seed):
    mesh = surface("boat", seed)
    assert mesh.extents[2] > 1.7 * mesh.extents[0]
    hull = inside("boat", seed, "hull", "rim")

    def width(low: float, high: float) -> float:
        some = hull[(hull[:, 2] > low) & (hull[:, 2] < high), 0]
        return (some.max() - some.min()).item()

    end = mesh.bounds[1, 2]
    assert width(end - 0.12, end) < 0.5 * width(-0.1, 0.1)
    assert width(-end, 0.12 - end) > 0.6 * width(-0.1, 0.1)
    cabin = inside("boat", seed, "cabin")
    assert cabin[:, 2].abs().max() < 0.6 and cabin[:, 1].mean() > hull[:, 1].mean() + 0.1
    assert inside("boat", seed, "mast")[:, 1].max() > cabin[:, 1].max() + 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_tree_is_a_green_crown_on_a_brown_trunk(seed):
    mesh = surface("tree", seed)
    trunk, crown = pieces("tree", seed, 0.25), pieces("tree", seed, 0.9)
    assert len(trunk) == len(crown) == 1 and crown[0] > 8 * trunk[0] > 8 * 0.1**2
    vertices = torch.from_numpy(mesh.vertices)
    kd, _ = instance("tree", seed).material(vertices)
    top, low = kd[vertices[:, 1] > 0.2].mean(0), kd[vertices[:, 1] < -0.5].mean(0)
    assert top[1] > 1.3 * top[0] and top[1] > 1.5 * top[2]
    assert low[0] > 1.3 * low[1] > low[2]


@pytest.mark.parametrize("seed", SEEDS)
def test_person_stands_on_two_legs_with_free_arms_and_looks_to_plus_z(seed):
    mesh = surface("person", seed)
    assert mesh.extents[1] > 1.3 * mesh.extents[0] > 1.8 * mesh.extents[2]
    assert len(pieces("person", seed, 0.3)) == 2
    hands = inside("person", seed, "skin")
    level = hands[hands[:, 0] > 0.3][:, 1].mean().item()
    assert len(pieces("person", seed, level - mesh.bounds[0, 1])) == 3
    eyes, shoes = inside("person", seed, "eyes"), inside("person", seed, "shoes")
    assert eyes[:, 2].min() > 0.05 and eyes[:, 1].min() > 0.35
    assert shoes[:, 2].max() > 0.1 > -shoes[:, 2].min()
    assert inside("person", seed, "hair")[:, 2].mean() < 0


@pytest.mark.parametrize("seed", SEEDS)
def test_head_has_its_face_in_front_and_its_hair_behind(seed):
    mesh = surface("head", seed)
    tip = mesh.vertices[mesh.vertices[:, 2].argmax()]
    assert abs(tip[0]) < 0.06 and abs(tip[1]) < 0.25  # The foremost point is the nose.
    for name in ("eyes", "brows"):
        points = inside("head", seed, name)
        assert points[:, 2].min() > 0.15 and points[:, 0].min() < -0.1 and points[:, 0].max() > 0.1
    lips, eyes, brows = (inside("head", seed, name)[:, 1].mean() for name in ("lips", "eyes", "brows"))
    assert lips < tip[1] < eyes < brows
    hair = inside("head", seed, "hair")
    assert hair[:, 2].mean() < -0.05 and hair[:, 1].max() > mesh.bounds[1, 1] - 0.04
    neck = pieces("head", seed, 0.08)
    assert 0.03 < max(neck) < 0.6 * max(pieces("head", seed, 0.9))


@pytest.mark.parametrize("seed", SEEDS)
def test_quadruped_stands_on_four_legs_head_in_front_tail_behind(seed):
    mesh = surface("quadruped", seed)
    assert mesh.extents[2] > 1.8 * mesh.extents[0]
    legs = pieces("quadruped", seed, 0.2)
    assert len(legs) == 4 and min(legs) > torch.pi * 0.045**2
    assert inside("quadruped", seed, "nose")[:, 2].max() > mesh.bounds[1, 2] - 0.05
    assert inside("quadruped", seed, "ears")[:, 2].min() > 0.15
    assert inside("quadruped", seed, "eyes")[:, 2].min() > 0.3
    behind = mesh.vertices[mesh.vertices[:, 2] < mesh.bounds[0, 2] + 0.1]
    assert abs(behind[:, 0]).max() < 0.12  # The rearmost points belong to the thin tail.


@pytest.mark.parametrize("seed", SEEDS)
def test_fish_is_flat_with_an_upright_tail_behind_and_eyes_in_front(seed):
    mesh = surface("fish", seed)
    tail, eyes = inside("fish", seed, "tail"), inside("fish", seed, "eyes")
    spread = tail.amax(0) - tail.amin(0)
    assert spread[1] > 4 * spread[0] and tail[:, 2].mean() < -0.4
    assert tail[:, 2].min() < mesh.bounds[0, 2] + 0.04
    assert eyes[:, 2].min() > 0.2 and eyes[:, 0].min() < -0.09 and eyes[:, 0].max() > 0.09
    assert inside("fish", seed, "body")[:, 2].max() > mesh.bounds[1, 2] - 0.05
    # The taller fin is on the back, so the body lies below the centre of the bounding box.
    assert inside("fish", seed, "fins")[:, 1].max() > mesh.bounds[1, 1] - 0.05
    assert inside("fish", seed, "body")[:, 1].mean() < -0.01


@pytest.mark.parametrize("seed", SEEDS)
def test_bird_stands_on_two_legs_with_its_beak_in_front_and_tail_behind(seed):
    mesh = surface("bird", seed)
    assert len(pieces("bird", seed, 0.13)) == 2
    beak, tail, wings = (inside("bird", seed, name) for name in ("beak", "tail", "wings"))
    assert beak[:, 2].max() > mesh.bounds[1, 2] - 0.05 and beak[:, 1].min() > 0.15
    assert tail[:, 2].min() < mesh.bounds[0, 2] + 0.04 and tail[:, 1].max() < beak[:, 1].min()
    assert wings[:, 0].min() < -0.25 and wings[:, 0].max() > 0.25
    horn = colour_of("bird", seed, "beak")
    assert horn[0] > horn[1] > 3 * horn[2]
