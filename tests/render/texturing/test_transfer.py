"""Test the transfer of materials to another mesh: nearest points as in trimesh, and equal normals."""

import pytest
import torch
import trimesh
from export_shapes import bumpy_ball, smooth_field, surface_samples

from render.shade.normals import bump
from render.texturing.decimate import decimate
from render.texturing.transfer import PAINTING_RES, frame_finder, prepare_export, transfer_field
from render.texturing.uv import ExportConfig, tangents, unwrap, uv_normals


@pytest.fixture(scope="module")
def painted():
    return unwrap(bumpy_ball(4), "uvunwrap", PAINTING_RES, 4)


def world_normals(mesh, points, local):
    _, normal, tangent = frame_finder(mesh)(points)
    return bump(normal, tangent, local)


def test_nearest_points_equal_trimesh(painted):
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    surface = trimesh.Trimesh(painted.v_pos.numpy(), painted.faces.numpy(), process=False)
    expected, distance, _ = trimesh.proximity.closest_point_naive(surface, points.numpy())
    nearest, normal, tangent = frame_finder(painted)(points)
    assert ((nearest - points).norm(dim=-1) - torch.tensor(distance)).abs().max() < 1e-5
    assert (nearest - torch.tensor(expected)).norm(dim=-1).median() < 1e-5
    assert (normal * tangent).sum(-1).abs().max() < 1e-5
    assert torch.allclose(tangent.norm(dim=-1), torch.ones(200), atol=1e-5)


def test_frames_at_vertices_equal_the_mesh(painted):
    position_of = torch.zeros(len(painted.uv), dtype=torch.long)
    position_of[painted.uv_faces.reshape(-1)] = painted.faces.reshape(-1)
    inner = (
        torch.bincount(position_of, minlength=len(painted.v_pos))[position_of] == 1
    )  # These vertices are not on a seam.
    _, normal, tangent = frame_finder(painted)(painted.v_pos[position_of][inner])
    assert (normal - uv_normals(painted)[inner]).abs().max() < 1e-4
    assert (tangent - tangents(painted)[inner]).abs().max() < 1e-3


def test_transfer_to_other_uv_keeps_the_material(painted):
    target = unwrap(painted, "uvunwrap", (256, 256), 4)
    turned = (painted.tangents[painted.uv_faces] * target.tangents[target.uv_faces]).sum(-1) < 0.9
    assert turned.any()  # The two meshes have different uv.
    points, _ = surface_samples(painted, 3000)
    expected, carried = smooth_field(points), transfer_field(painted, target, smooth_field)(points)
    for name in ("kd", "ks"):
        assert torch.allclose(carried[name], expected[name], atol=1e-5), name
    theirs = world_normals(painted, points, expected["normal"])
    ours = world_normals(target, points, carried["normal"])
    assert (ours * theirs).sum(-1).min() > 0.9999
    assert (world_normals(target, points, expected["normal"]) * theirs).sum(-1).min() < 0.95


def test_decimated_mesh_gets_the_lost_relief_as_normals(painted):
    def flat(points):
        return {"normal": torch.tensor([0.0, 0.0, 1.0]).expand(len(points), 3)}

    target = unwrap(decimate(painted, 300), "xatlas", (256, 256), 4)
    points, _ = surface_samples(target, 3000)
    _, wanted, _ = frame_finder(painted)(points)
    _, coarse, _ = frame_finder(target)(points)
    ours = world_normals(target, points, transfer_field(painted, target, flat)(points)["normal"])
    error, before = ((a * wanted).sum(-1).clamp(-1, 1).acos().mean() for a in (ours, coarse))
    assert error < 0.01 and before > 0.05


def test_export_mesh_depends_on_the_config(painted):
    def choose(own_uv, **values):
        config = ExportConfig(unwrap="xatlas", **values)
        return prepare_export(painted, smooth_field, config, own_uv)

    # If `own_uv`, the uv come from the input file. They are kept, because they are suitable for every texture
    # size.
    assert choose(True, texture_res=(64, 64)) == (painted, smooth_field)
    assert choose(False, texture_res=PAINTING_RES) == (painted, smooth_field)
    assert choose(True, export_faces=len(painted.faces))[0] is painted
    again, field = choose(False, texture_res=(64, 64))
    assert torch.equal(again.v_pos, painted.v_pos) and again.uv is not painted.uv
    assert field is not smooth_field
    assert len(choose(True, export_faces=500)[0].faces) == 500
