"""Test the removal of small components from meshes of spheres with known areas."""

import logging
import sys

import pytest
import torch
import trimesh

from render.mesh import make_mesh
from render.texturing.small_components import remove_small_components


def ball(radius, centre):
    shape = trimesh.creation.icosphere(subdivisions=2, radius=radius)
    shape.apply_translation(centre)
    return shape


def mesh_of(*shapes):
    whole = trimesh.util.concatenate(shapes)
    return make_mesh(torch.tensor(whole.vertices).float(), torch.tensor(whole.faces))


# The second sphere is the largest. The areas of the others are 0.04 and 0.0025 of its area.
BALLS = ball(0.1, (2, 0, 0)), ball(0.5, (0, 0, 0)), ball(0.025, (-2, 0, 0))


@pytest.mark.parametrize(
    # The first sphere has 0.04 of the largest area, so a threshold of 0.039 keeps it.
    ("share", "left"),
    [(0.0, (0, 1, 2)), (0.001, (0, 1, 2)), (0.01, (0, 1)), (0.039, (0, 1)), (0.1, (1,))],
)
def test_components_below_the_share_are_removed(share, left, caplog):
    mesh = mesh_of(*BALLS)
    with caplog.at_level(logging.INFO):
        kept = remove_small_components(mesh, share)
    expected = mesh_of(*(BALLS[number] for number in left))
    assert torch.equal(kept.v_pos, expected.v_pos) and torch.equal(kept.faces, expected.faces)
    assert torch.allclose(kept.v_nrm, expected.v_nrm)
    if len(left) == 3:
        assert kept is mesh and not caplog.records
    else:
        assert f"removed {3 - len(left)} small components with" in caplog.text
    if left == (0, 1):
        assert "with 0.24 % of the area" in caplog.text


def test_shared_vertices_connect_components_and_empty_meshes_are_kept():
    tip = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [-0.01, 0, 0], [0, -0.01, 0]])
    joined = make_mesh(tip, torch.tensor([[0, 1, 2], [0, 3, 4]]))
    assert remove_small_components(joined, 0.5) is joined
    empty = make_mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    assert remove_small_components(empty, 0.5) is empty


def test_without_libigl_all_components_are_kept_with_a_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "igl", None)
    mesh = mesh_of(*BALLS)
    assert remove_small_components(mesh, 0.01) is mesh
    assert "pip install libigl" in caplog.text
