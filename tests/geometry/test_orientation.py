"""Test the orientation of faces of spheres with flipped faces, and of hollow, separate and open bodies."""

import logging

import numpy as np
import pytest
import torch
import trimesh

from geometry.fixed_mesh import REACH, load_fixed_mesh, placement
from geometry.kernels.orientation_numba import propagate_orientation
from geometry.orientation import _patches, flipped_faces, signed_volume
from geometry.start_shape import StartShapeConfig, build_start_shape


@pytest.fixture(scope="module")
def ball():
    mesh = trimesh.creation.icosphere(3)
    return torch.tensor(mesh.vertices.copy()), torch.tensor(mesh.faces.copy()).long()


def inverted(faces, share):
    """Flip randomly chosen faces. Return all faces and the mask of the flipped ones.

    share: the probability that a face is flipped.
    """
    which = torch.rand(len(faces), generator=torch.Generator().manual_seed(1)) < share
    return torch.where(which[:, None], faces.flip(-1), faces), which


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_flipped_faces_of_a_closed_body_are_found(ball, share):
    v_pos, faces = ball
    broken, which = inverted(faces, share)
    assert torch.equal(flipped_faces(v_pos, broken), which)


def test_cavities_stay_and_separate_bodies_are_flipped(ball):
    v_pos, faces = ball
    inner = faces.flip(-1) + len(v_pos)
    hollow = flipped_faces(torch.cat([v_pos, 0.5 * v_pos]), torch.cat([faces, inner]))
    assert not hollow.any()
    beside = flipped_faces(torch.cat([v_pos, 0.5 * v_pos + 3]), torch.cat([faces, inner]))
    assert not beside[: len(faces)].any() and beside[len(faces) :].all()


def test_patches_equal_those_of_the_compiled_function():
    """The pairs connect faces in chains and in trees, with several patches and single faces."""
    generator = np.random.default_rng(0)
    for _ in range(30):
        count = int(generator.integers(2, 60))
        neighbour, pairs = np.full((count, 3), -1), []
        for one, other in generator.integers(0, count, (count, 2)):
            free = neighbour[one, 2] < 0 and neighbour[other, 2] < 0
            if free and one != other:
                for face, beside in ((one, other), (other, one)):
                    neighbour[face, (neighbour[face] >= 0).sum()] = beside
                pairs.append((one, other))
        patch, flipped = np.full(count, -1), np.zeros(count, dtype=bool)
        propagate_orientation(neighbour, np.zeros((count, 3), dtype=bool), patch, flipped)
        assert np.array_equal(_patches(count, *np.array(pairs).reshape(-1, 2).T), patch)


def test_many_bodies_equal_single_bodies(ball):
    v_pos, faces = trimesh.creation.icosphere(1).vertices, trimesh.creation.icosphere(1).faces
    v_pos, faces = torch.tensor(v_pos.copy()), torch.tensor(faces.copy()).long()
    vertices, table, expected = [], [], []
    for number in range(40):
        place = torch.tensor([3.0 * (number % 8), 3.0 * (number // 8), 0.0])
        # A third of the bodies are inverted. Half of the bodies contain a smaller body of either orientation.
        # The smaller body is a cavity and must stay unchanged.
        inside = [(0.5, number % 4 == 0)] if number % 4 < 2 else []
        for size, flipped in [(1.0, number % 3 == 0), *inside]:
            table.append((faces.flip(-1) if flipped else faces) + len(v_pos) * len(vertices))
            vertices.append(place + size * v_pos)
            expected.append(torch.full((len(faces),), flipped and size == 1.0))
    found = flipped_faces(torch.cat(vertices), torch.cat(table))
    assert torch.equal(found, torch.cat(expected))
    assert 0 < found.sum() < len(found)


def test_open_surface_keeps_the_orientation_of_most_of_its_area(ball):
    v_pos, faces = ball
    cap = faces[:600]
    for start, expected in ((cap, 0), (cap.flip(-1), 0)):
        assert flipped_faces(v_pos, start).sum() == expected
    broken, which = inverted(cap.flip(-1), 0.2)
    assert torch.equal(flipped_faces(v_pos, broken), which)


def write(path, v_pos, faces):
    trimesh.Trimesh(v_pos.numpy(), faces.numpy(), process=False).export(path)
    return path


def test_loaded_mesh_has_outward_normals(ball, tmp_path, caplog):
    v_pos, faces = ball
    broken, which = inverted(faces, 0.3)
    path = write(tmp_path / "ball.ply", v_pos, broken)
    with caplog.at_level(logging.WARNING):
        mesh = load_fixed_mesh(path)
    assert (mesh.v_nrm * mesh.v_pos).sum(-1).min() > 0.95
    assert f"{int(which.sum())} of 1280 faces" in caplog.text


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_start_shape_with_flipped_faces_keeps_its_volume(ball, tmp_path, share):
    v_pos, faces = ball
    # The start shape is normalised, so the mesh may be large and far from the origin.
    path = write(tmp_path / "ball.stl", 10 * v_pos + 40, inverted(faces, share)[0])
    shape = build_start_shape(StartShapeConfig(sdf_init_shape="custom_mesh", base_mesh=str(path)))
    assert signed_volume(shape.v_pos, shape.faces) == pytest.approx(4.19, rel=0.02)
    points = torch.tensor([[0.0, 0, 0], [0, 0.5, 0], [0.9, 0.9, 0]])
    assert torch.allclose(shape.signed_distance(points), points.norm(dim=-1) - 1, atol=0.02)


def test_placement_and_its_inverse(ball, tmp_path, caplog):
    v_pos, faces = ball
    stretched = v_pos * torch.tensor([1.0, 2.0, 0.5]) * 10 + torch.tensor([40.0, -7.0, 3.0])
    mesh = load_fixed_mesh(write(tmp_path / "far.ply", stretched, faces))
    place = placement(mesh, normalise=True)
    seen = place.into_view(mesh)
    assert seen.v_pos.norm(dim=-1).max() == pytest.approx(REACH, rel=1e-5)
    assert (seen.v_pos.amax(0) + seen.v_pos.amin(0)).abs().max() < 1e-5
    assert torch.allclose(place.back(seen).v_pos, mesh.v_pos, atol=1e-4)
    assert not caplog.records
    kept = placement(mesh, normalise=False)
    assert torch.equal(kept.into_view(mesh).v_pos, mesh.v_pos) and torch.equal(
        kept.back(mesh).v_pos, mesh.v_pos
    )
    assert "normalise_mesh" in caplog.text and "base_mesh" in caplog.text


def test_visible_mesh_has_no_warning(ball, tmp_path, caplog):
    v_pos, faces = ball
    placement(load_fixed_mesh(write(tmp_path / "near.ply", 0.7 * v_pos, faces)), normalise=False)
    assert not caplog.records
