"""Test that the guide meshes equal the output of their script, are closed, and have the required position."""

from pathlib import Path

import igl
import numpy as np
import pytest
import trimesh

from configs.json_file import read_object
from configs.schema import parse_config
from data.make_guides import FOLDER, guides, march_guide, obj_text
from dataset.procedural.solid import REACH
from geometry.start_shape import build_start_shape
from render.mesh_io.load import load_mesh

ROOT = Path(__file__).parents[2]
GUIDES = guides()
PERSON = FOLDER / "person" / "person.obj"
OF_CATEGORIES = [name for name in GUIDES if name != "person/person.obj"]


def opened(name: str) -> trimesh.Trimesh:
    mesh = load_mesh(FOLDER / name)
    return trimesh.Trimesh(mesh.v_pos.numpy(), mesh.faces.numpy(), process=False)


@pytest.fixture(scope="module")
def shipped() -> trimesh.Trimesh:
    return opened("person/person.obj")


@pytest.mark.parametrize("name", GUIDES)
def test_shipped_file_equals_the_script_output(name):
    guide = GUIDES[name]
    made, kept = (
        obj_text(*march_guide(guide), guide.unit).splitlines(),
        (FOLDER / name).read_text().splitlines(),
    )
    assert made[0] == kept[0]
    faces, positions = (
        [[line.split()[1:] for line in lines if line[:2] == start] for lines in (made, kept)]
        for start in ("f ", "v ")
    )
    assert faces[0] == faces[1]
    # The last digit of a position can differ between processors.
    np.testing.assert_allclose(*(np.array(lines, dtype=float) for lines in positions), atol=3e-5)


@pytest.mark.parametrize("name", OF_CATEGORIES)
def test_guide_is_one_closed_component_that_fits_the_scene(name):
    mesh = opened(name)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.body_count == 1
    assert mesh.volume > 0  # Faces are counter-clockwise, seen from outside.
    assert 5000 <= len(mesh.faces) <= 10_000 and (FOLDER / name).stat().st_size < 400_000
    config = parse_config(
        {
            "mode": "geometry_modeling",
            "text": "anything",
            "out_dir": "anywhere",
            "sdf_init_shape": "custom_mesh",
            "base_mesh": str(FOLDER / name),
            "sdf_init_shape_scale": [0.8, 0.8, 0.8],
        },
        "example.json",
    )
    # The mean of the vertices of a start mesh is moved to 0, and its farthest vertex to distance 1. The mesh
    # is then scaled by 0.8, so no coordinate exceeds 0.8.
    assert 0.6 < build_start_shape(config.start_shape).v_pos.abs().max() < 0.8
    centre = mesh.bounds.mean(0)
    np.testing.assert_allclose(centre, 0, atol=0.02)
    assert np.linalg.norm(mesh.vertices, axis=1).max() == pytest.approx(REACH, abs=0.02)


def test_head_has_nose_in_front_and_level_neck():
    points = opened("head/head.obj").vertices
    tip = points[points[:, 2].argmax()]
    assert abs(tip[0]) < 0.05 and abs(tip[1]) < 0.25
    neck, widest = points[points[:, 1] < -0.6], np.ptp(points[:, 0])
    assert np.ptp(neck[:, 0]) < 0.7 * widest and neck[:, 2].mean() < 0


def test_animal_has_four_legs_and_head_in_front():
    mesh = opened("animal/animal.obj")
    low, high = mesh.bounds
    assert len(mesh.section(plane_origin=[0, low[1] + 0.2, 0], plane_normal=[0, 1, 0]).discrete) == 4
    assert mesh.extents[2] > 1.8 * mesh.extents[0]
    # The highest points are those of the ears, which are above the front legs.
    assert mesh.vertices[mesh.vertices[:, 1] > high[1] - 0.05][:, 2].min() > 0.2


def test_chair_has_four_legs_and_back_behind():
    mesh = opened("chair/chair.obj")
    low, _ = mesh.bounds
    assert len(mesh.section(plane_origin=[0, low[1] + 0.15, 0], plane_normal=[0, 1, 0]).discrete) == 4
    assert mesh.vertices[mesh.vertices[:, 1] > 0.3][:, 2].max() < 0


def test_person_is_one_closed_component_of_moderate_size(shipped):
    assert shipped.is_watertight and shipped.is_winding_consistent and shipped.body_count == 1
    assert (np.bincount(shipped.edges_unique_inverse) == 2).all() and shipped.euler_number == 2
    assert 5000 <= len(shipped.faces) <= 10_000 and PERSON.stat().st_size < 600_000
    # A person of height 1.8 m has a volume of 60 to 110 litres.
    assert 0.06 < shipped.volume < 0.11


def test_person_is_upright_and_faces_plus_z(shipped):
    points = shipped.vertices
    assert np.ptp(points[:, 1]) == pytest.approx(1.8, abs=0.02)
    assert 0.8 < np.ptp(points[:, 0]) < 1.4 and np.ptp(points[:, 2]) < 0.4
    feet = points[points[:, 1] < -0.82]
    assert feet[:, 2].max() > 0.15 and feet[:, 2].min() > -0.12
    # The space between each arm and the waist is empty, and so is the space between the legs.
    air = [(0.33, 0.1, 0.0), (-0.33, 0.1, 0.0), (0.0, -0.4, 0.0)]
    solid = [(0.0, 0.3, 0.0), (0.0, 0.75, 0.0), (0.185, -0.4, 0.0), (-0.185, -0.4, 0.0), (0.41, 0.14, 0.0)]
    winding = igl.fast_winding_number(points, shipped.faces, np.array(air + solid))
    assert (winding > 0.5).tolist() == [False] * len(air) + [True] * len(solid)


def test_start_shape_of_the_config_fits_its_grid(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = parse_config(read_object("configs/Gundam_geometry.json"), "Gundam_geometry.json")
    shape = build_start_shape(config.start_shape)
    cell = config.geometry.mesh_scale / (0.4 * config.geometry.dmtet_grid)
    assert shape.v_pos.abs().max() < config.geometry.mesh_scale / 2 - cell
