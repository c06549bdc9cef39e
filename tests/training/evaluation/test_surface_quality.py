"""Compare surface measures with closed forms, and the ground truth with the procedural objects."""

import math

import pytest
import torch

from geometry.dmtet import GeometryConfig
from geometry.tet_grid import make_tet_grid
from render.mesh import make_mesh
from training.evaluation.ground_truth import (
    material_name,
    true_material,
    true_mesh,
    true_object,
    true_roughness,
)
from training.evaluation.surface_quality import (
    connected_parts,
    non_manifold_share,
    roughness,
    surface_quality,
)


def cube(size=1.0, shift=0.0):
    v_pos = size * torch.tensor([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = [[q[0], q[i], q[i + 1]] for q in quads for i in (1, 2)]
    return make_mesh(v_pos + shift, torch.tensor(faces, dtype=torch.int32))


def both(one, other):
    faces = torch.cat([one.faces, other.faces + len(one.v_pos)])
    return make_mesh(torch.cat([one.v_pos, other.v_pos]), faces)


def test_roughness_is_the_mean_angle_weighted_by_length():
    # A cube has 12 edges of length 1 with an angle of 90 degrees, and 6 diagonals with an angle of 0 degrees.
    expected = 90 * 12 / (12 + 6 * math.sqrt(2))
    assert roughness(cube()) == pytest.approx(expected, rel=1e-5)
    assert roughness(cube(3.0)) == pytest.approx(expected, rel=1e-5)
    # The edges of the second cube are a tenth as long as those of the first cube. Both cubes have the same
    # roughness, so the roughness of the two cubes together has the same value.
    assert roughness(both(cube(), cube(0.1, 5.0))) == pytest.approx(expected, rel=1e-5)
    flat = make_mesh(
        torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]])
    )
    assert roughness(flat) == pytest.approx(0, abs=1e-4)


def test_a_long_edge_counts_more_than_a_short_one():
    # The mesh has two interior edges: one of length 4 at 90 degrees, and one of length 1 at 0 degrees.
    v_pos = torch.tensor(
        [[0.0, 0, 0], [4, 0, 0], [2, 1, 0], [2, 0, 1], [9, 0, 0], [9, 1, 0], [10, 0, 0], [8, 1, 0]]
    )
    faces = torch.tensor([[0, 1, 2], [1, 0, 3], [4, 6, 5], [4, 5, 7]])
    assert roughness(make_mesh(v_pos, faces)) == pytest.approx(90 * 4 / 5, rel=1e-4)


def test_loose_parts_and_open_edges_are_counted():
    found = surface_quality(both(cube(), cube(0.5, 5.0)))
    assert (found.parts, found.faces, found.non_manifold) == (2, 24, 0)
    assert found.loose == pytest.approx(0.2)
    box = cube()
    # If one triangle is removed, 3 of 18 edges have only one face.
    assert non_manifold_share(box.faces[1:], 8) == pytest.approx(3 / 18)
    assert connected_parts(torch.tensor([[3, 4, 2], [5, 6, 4], [0, 1, 7]]), 9).tolist() == [
        0, 0, 2, 2, 2, 2, 2, 0, 8,
    ]  # fmt: skip


def test_true_mesh_lies_on_the_object_s_surface_on_the_run_s_grid():
    config = GeometryConfig(dmtet_grid=24, mesh_scale=2.0)
    # The stem is thinner than a cell of this coarse grid, so the surface of the mesh is displaced by up to
    # 0.6 cells.
    subject = true_object("apple", 1)
    mesh = true_mesh(subject, config, torch.device("cpu"))
    grid = make_tet_grid(24, 2.0)
    cell = (grid.v_pos[:, 0].unique()[1:] - grid.v_pos[:, 0].unique()[:-1]).min()
    assert subject.signed_distance(mesh.v_pos).abs().max() < 0.75 * cell
    assert subject.signed_distance(mesh.v_pos).abs().mean() < 0.1 * cell
    # Surface vertices are on grid edges, which are in a lattice plane or on a diagonal of a lattice cube.
    steps = (mesh.v_pos - grid.v_pos.amin(0)) / cell
    offset = (steps - steps.round()).abs()
    on_plane, on_diagonal = offset.amin(1) < 1e-2, offset.amax(1) - offset.amin(1) < 1e-2
    assert (on_plane | on_diagonal).double().mean() > 0.99
    assert 2 < true_roughness("apple", config) < 60


def test_true_material_is_that_of_the_named_material_and_repeats():
    subject = true_object("chair", 0)
    points = true_mesh(subject, GeometryConfig(dmtet_grid=16), torch.device("cpu")).v_pos
    kd, ks = true_material(subject, "golden")(points)
    assert torch.equal(kd, true_material(subject, "golden")(points)[0])
    assert (ks[:, 2] == 1).all() and (ks[:, 1] > 0.29).all() and (ks[:, 1] < 0.43).all()
    assert (kd[:, 0] > kd[:, 2]).all()
    assert material_name("chair", 0) != material_name("chair", 1)
