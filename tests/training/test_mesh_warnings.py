"""Test the warnings about a mesh from the user."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from geometry.fixed_mesh import load_fixed_mesh, placement
from training.mesh_warnings import looks_z_up, unused_appearance, warn_about_mesh

DATA = Path(__file__).parents[2] / "data"


def cone():
    """Return a cone with its base at y = -0.5 and its tip at the top."""
    shape = trimesh.creation.cone(0.5, 1.0)
    shape.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))
    shape.vertices -= shape.bounds.mean(0)
    return shape


def table():
    """Return a table with four legs and a lamp. The up axis is +y."""
    parts = [trimesh.creation.box((1.0, 0.1, 0.7))]
    for x in (-0.45, 0.45):
        for z in (-0.3, 0.3):
            leg = trimesh.creation.box((0.08, 0.6, 0.08))
            leg.apply_translation((x, -0.35, z))
            parts.append(leg)
    return trimesh.util.concatenate([*parts, lamp()])


def lamp():
    """Return a thin stick that stands on the table, so that the highest part is smaller than the base."""
    stick = trimesh.creation.box((0.05, 0.5, 0.05))
    stick.apply_translation((0, 0.3, 0))
    return stick


def box():
    return trimesh.creation.box((0.8, 1.0, 0.6))


def tensors(shape):
    return torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(shape.faces)


def turned(shape):
    """Return the shape with the up axis +z instead of +y."""
    copy = shape.copy()
    copy.vertices = copy.vertices[:, [0, 2, 1]] * [1, -1, 1]
    return copy


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("corners", [3, 4])
def test_a_flat_mesh_has_no_base(axis, corners):
    square = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]).roll(axis + 1, 1)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])[: corners - 2]
    assert not looks_z_up(square, faces)


@pytest.mark.parametrize("make", [cone, table])
def test_a_mesh_that_stands_on_its_lowest_z_looks_z_up(make):
    assert not looks_z_up(*tensors(make()))
    assert looks_z_up(*tensors(turned(make())))


def test_a_symmetric_mesh_looks_z_up_only_if_it_stands_on_the_ground_plane():
    shape = box()
    assert not looks_z_up(*tensors(shape))
    shape.vertices -= [0, 0, shape.bounds[0, 2]]
    assert looks_z_up(*tensors(shape))
    shape.vertices -= [0, shape.bounds[0, 1], 0]
    assert not looks_z_up(*tensors(shape))


@pytest.mark.parametrize("name", ["animal", "chair", "head", "person"])
def test_the_shipped_meshes_are_y_up(name):
    mesh = load_fixed_mesh(DATA / name / f"{name}.obj")
    assert not looks_z_up(mesh.v_pos, mesh.faces)


def textured(suffix, folder):
    shape = box()
    image = Image.new("RGB", (4, 4), "red")
    uv = np.zeros((len(shape.vertices), 2))
    shape.visual = trimesh.visual.TextureVisuals(uv=uv, image=image)
    path = folder / f"mesh{suffix}"
    shape.export(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".obj", ".glb"])
def test_materials_and_textures_of_a_file_are_counted(tmp_path, suffix):
    assert unused_appearance(textured(suffix, tmp_path)) == "1 material, 1 texture"


def test_colours_of_vertices_are_found(tmp_path):
    shape = box()
    shape.export(tmp_path / "plain.ply", vertex_normal=False)
    assert unused_appearance(str(tmp_path / "plain.ply")) == ""
    shape.visual.vertex_colors = [255, 0, 0, 255]
    shape.export(tmp_path / "red.ply")
    assert unused_appearance(str(tmp_path / "red.ply")) == "vertex colours"


@pytest.mark.parametrize(
    ("name", "content"), [("a.stl", b"x"), ("a.glb", b"glTFxxxx"), ("a.obj", b"mtllib no.mtl")]
)
def test_a_file_without_colour_or_with_damage_has_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert unused_appearance(str(tmp_path / name)) == ""


def test_each_fault_is_one_warning_with_its_fix(tmp_path, caplog):
    shape = turned(cone())
    shape.visual = trimesh.visual.TextureVisuals(
        uv=np.zeros((len(shape.vertices), 2)), image=Image.new("RGB", (4, 4))
    )
    shape.export(tmp_path / "mine.glb")
    warn_about_mesh(str(tmp_path / "mine.glb"), *tensors(shape), "turn it")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "looks Z-up" in lines[0] and lines[0].endswith("turn it")
    assert "the run does not use 1 material, 1 texture of the file" in lines[1]
    assert "--init_textures true" in lines[1]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_a_mesh_of_this_program_is_not_checked(tmp_path, caplog):
    warn_about_mesh(str(tmp_path / "dmtet_mesh/mesh.obj"), *tensors(turned(cone())), "turn it")
    assert not caplog.records


@pytest.mark.parametrize(("factor", "warned"), [(0.15, True), (0.5, False), (1.0, False), (6.0, True)])
def test_a_mesh_far_smaller_or_larger_than_the_frame_is_a_warning(tmp_path, caplog, factor, warned):
    """The frame is 2.4 units wide. The width of the mesh is `factor` times that of the frame."""
    ball = trimesh.creation.icosphere(2, radius=1.2 * factor)
    ball.export(tmp_path / "ball.obj")
    placement(load_fixed_mesh(tmp_path / "ball.obj"), False)
    assert bool(caplog.records) == warned
    assert all("normalise_mesh" in record.getMessage() for record in caplog.records)
