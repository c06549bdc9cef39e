"""Test OBJ files with trimesh and by reading their lines."""

import numpy as np
import pytest
import torch
import trimesh
from export_shapes import bumpy_ball, smooth_field
from PIL import Image

from render.mesh import Mesh
from render.mesh_io.write_obj import write_obj
from render.texturing.uv import unwrap

MAPS = ("map_Kd", "map_Ks", "map_Pr", "map_Pm", "bump", "norm")


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return unwrap(bumpy_ball(2), "xatlas", (64, 64), 2)


@pytest.fixture(scope="module")
def textures() -> dict[str, torch.Tensor]:
    texels = torch.rand(64 * 64, 3, generator=torch.Generator().manual_seed(0))
    return {name: value.reshape(64, 64, 3) for name, value in smooth_field(texels).items()}


def records(path, kind: str) -> list[list[str]]:
    lines = [line.split() for line in path.read_text().splitlines()]
    return [fields[1:] for fields in lines if fields and fields[0] == kind]


def test_positions_and_faces_round_trip_exactly(mesh, textures, tmp_path):
    path = write_obj(tmp_path, mesh, textures)
    assert path == tmp_path / "mesh.obj"
    assert np.array_equal(np.float32(records(path, "v")), mesh.v_pos.numpy())
    uv = np.float64(records(path, "vt"))
    assert np.abs(uv * [1, -1] + [0, 1] - mesh.uv.numpy()).max() < 1e-9
    corners = np.array([[corner.split("/") for corner in face] for face in records(path, "f")], dtype=int) - 1
    assert np.array_equal(corners[..., 0], mesh.faces.numpy())
    assert np.array_equal(corners[..., 1], mesh.uv_faces.numpy())
    assert np.array_equal(corners[..., 2], mesh.faces.numpy())


def test_trimesh_reads_the_same_surface_with_its_picture(mesh, textures, tmp_path):
    loaded = trimesh.load(write_obj(tmp_path, mesh, textures), process=False)
    ours = mesh.v_pos[mesh.faces].numpy()
    assert np.array_equal(np.float32(loaded.triangles), ours)
    theirs = loaded.visual.uv[loaded.faces]
    expected = mesh.uv[mesh.uv_faces].numpy() * [1, -1] + [0, 1]
    assert np.abs(theirs - expected).max() < 1e-6
    assert loaded.visual.material.image.size == (64, 64)
    assert np.abs(loaded.vertex_normals[loaded.faces] - mesh.v_nrm[mesh.faces].numpy()).max() < 1e-6


def test_textures_hold_srgb_albedo_plain_ks_and_encoded_normals(mesh, textures, tmp_path):
    write_obj(tmp_path, mesh, textures)
    kd = textures["kd"].double().numpy()
    srgb = np.where(kd <= 0.0031308, 12.92 * kd, 1.055 * kd ** (1 / 2.4) - 0.055)
    ks = textures["ks"].numpy()
    expected = {"kd": srgb, "ks": ks, "n": textures["normal"].numpy() * 0.5 + 0.5}
    expected |= {"roughness": ks[..., 1], "metallic": ks[..., 2]}
    for name, values in expected.items():
        stored = np.asarray(Image.open(tmp_path / f"texture_{name}.png"), dtype=float) / 255
        assert np.abs(stored - values).max() <= 0.5001 / 255, name


def test_material_names_the_existing_files(mesh, textures, tmp_path):
    write_obj(tmp_path, mesh, textures)
    assert records(tmp_path / "mesh.obj", "mtllib") == [["mesh.mtl"]]
    assert records(tmp_path / "mesh.mtl", "newmtl") == records(tmp_path / "mesh.obj", "usemtl")
    maps = {kind: records(tmp_path / "mesh.mtl", kind)[0][0] for kind in MAPS}
    assert maps == {
        "map_Kd": "texture_kd.png",
        "map_Ks": "texture_ks.png",
        "map_Pr": "texture_roughness.png",
        "map_Pm": "texture_metallic.png",
        "bump": "texture_n.png",
        "norm": "texture_n.png",
    }


def test_geometry_alone_has_no_textures(tmp_path):
    plain = bumpy_ball(1)
    write_obj(tmp_path, plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mesh.mtl", "mesh.obj"]
    assert "texture" not in (tmp_path / "mesh.mtl").read_text()
    loaded = trimesh.load(tmp_path / "mesh.obj", process=False)
    assert np.array_equal(np.float32(loaded.triangles), plain.v_pos[plain.faces].numpy())
