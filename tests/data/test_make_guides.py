"""The guide meshes: as the script makes them, closed, and where the configs that name them need them."""

from pathlib import Path

import igl
import numpy as np
import pytest
import trimesh

from configs.json_file import read_object
from configs.schema import parse_config
from data.make_guides import guide, obj_text
from dataset.objects.figures import mannequin
from geometry.start_shape import build_start_shape
from render.mesh_file import load_mesh

ROOT = Path(__file__).parents[2]
PERSON = ROOT / "data" / "person" / "person.obj"


@pytest.fixture(scope="module")
def shipped() -> trimesh.Trimesh:
    mesh = load_mesh(PERSON)
    return trimesh.Trimesh(mesh.v_pos.numpy(), mesh.faces.numpy(), process=False)


def test_the_shipped_file_is_what_the_script_writes():
    made, kept = obj_text(*guide(mannequin())).splitlines(), PERSON.read_text().splitlines()
    faces, positions = (
        [[line.split()[1:] for line in lines if line[:2] == start] for lines in (made, kept)]
        for start in ("f ", "v ")
    )
    assert faces[0] == faces[1]
    # Another processor may round the last digit otherwise.
    np.testing.assert_allclose(*(np.array(lines, dtype=float) for lines in positions), atol=3e-5)


def test_the_person_is_one_closed_piece_of_moderate_size(shipped):
    assert shipped.is_watertight and shipped.is_winding_consistent and shipped.body_count == 1
    assert (np.bincount(shipped.edges_unique_inverse) == 2).all() and shipped.euler_number == 2
    assert 5000 <= len(shipped.faces) <= 10_000 and PERSON.stat().st_size < 600_000
    # A person of 1.8 m has 60 to 110 litres.
    assert 0.06 < shipped.volume < 0.11


def test_the_person_stands_upright_and_looks_to_plus_z(shipped):
    points = shipped.vertices
    assert np.ptp(points[:, 1]) == pytest.approx(1.8, abs=0.02)
    assert 0.8 < np.ptp(points[:, 0]) < 1.4 and np.ptp(points[:, 2]) < 0.4
    feet = points[points[:, 1] < -0.82]
    assert feet[:, 2].max() > 0.15 and feet[:, 2].min() > -0.12
    # There is air between the arms and the waist, and between the legs.
    air = [(0.33, 0.1, 0.0), (-0.33, 0.1, 0.0), (0.0, -0.4, 0.0)]
    solid = [(0.0, 0.3, 0.0), (0.0, 0.75, 0.0), (0.185, -0.4, 0.0), (-0.185, -0.4, 0.0), (0.41, 0.14, 0.0)]
    winding = igl.fast_winding_number(points, shipped.faces, np.array(air + solid))
    assert (winding > 0.5).tolist() == [False] * len(air) + [True] * len(solid)


def test_the_start_shape_of_the_config_lies_within_its_grid(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = parse_config(read_object("configs/Gundam_geometry.json"), "Gundam_geometry.json")
    shape = build_start_shape(config.start_shape)
    cell = config.geometry.mesh_scale / (0.4 * config.geometry.dmtet_grid)
    assert shape.v_pos.abs().max() < config.geometry.mesh_scale / 2 - cell
