"""Test decimation: number of faces, distance to the original, and closedness (checked with trimesh)."""

import logging

import numpy as np
import torch
import trimesh
from export_shapes import bumpy_ball

from geometry.marching_tets import marching_tetrahedra
from geometry.tet_grid import make_tet_grid
from render.mesh import make_mesh
from render.texturing.decimate import decimate


def as_trimesh(mesh):
    return trimesh.Trimesh(mesh.v_pos.numpy(), mesh.faces.numpy(), process=False)


def torn_plate():
    """Return a thin plate with noise. Its surface is closed and has hundreds of tunnels and handles."""
    grid = make_tet_grid(64, 2.0)
    noise = 0.002 * torch.randn(len(grid.v_pos), generator=torch.Generator().manual_seed(0))
    half = torch.tensor([0.6, 0.02, 0.6])
    sdf = (grid.v_pos.abs() - half).amax(-1) + noise
    return make_mesh(*marching_tetrahedra(grid.v_pos, sdf, grid.tets, grid.edges, grid.tet_edges))


def test_smooth_surface_keeps_position_and_orientation(caplog):
    caplog.set_level(logging.INFO)
    whole = bumpy_ball(4)
    fewer = decimate(whole, 1000)
    assert len(fewer.faces) == 1000 and fewer.uv is None
    ours, theirs = as_trimesh(fewer), as_trimesh(whole)
    assert ours.is_watertight and ours.euler_number == 2
    # The volume is positive, so the faces still point outwards.
    assert abs(ours.volume / theirs.volume - 1) < 0.01
    distance = trimesh.proximity.closest_point_naive(theirs, ours.vertices[::5])[1]
    assert distance.max() < 0.01 * theirs.scale
    assert torch.allclose(fewer.v_nrm.norm(dim=-1), torch.ones(len(fewer.v_pos)), atol=1e-5)
    assert "decimated 5120 faces to 1000 in" in caplog.text


def test_torn_surface_stays_closed_and_missing_reduction_is_logged(caplog):
    caplog.set_level(logging.INFO)
    torn = torn_plate()
    assert as_trimesh(torn).is_watertight and as_trimesh(torn).euler_number < -100
    fewer = decimate(torn, 500)
    assert as_trimesh(fewer).is_watertight and as_trimesh(fewer).is_winding_consistent
    assert 500 < len(fewer.faces) < 0.6 * len(torn.faces)
    assert "500 requested, but no other edge can be collapsed" in caplog.text


def test_mesh_with_few_faces_is_unchanged():
    ball = bumpy_ball(1)
    assert decimate(ball, len(ball.faces)) is ball


def test_nonmanifold_edges_are_supported():
    ball = trimesh.creation.icosphere(3)
    doubled = np.concatenate([ball.faces, ball.faces[:1]])
    mesh = make_mesh(torch.tensor(ball.vertices, dtype=torch.float32), torch.tensor(doubled))
    fewer = decimate(mesh, 300)
    assert 0 < len(fewer.faces) <= 310
    assert abs(fewer.v_pos.norm(dim=-1) - 1).max() < 0.05
