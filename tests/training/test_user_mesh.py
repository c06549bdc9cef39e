"""Test a user's mesh from the input file to the exported file, at toy size with the embedded prior."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from reduced_work import shorten_fit

import train
from geometry.start_shape import StartShapeConfig, build_start_shape
from render.camera import orbit
from render.gbuffer import rasterize_gbuffer
from render.mesh import make_mesh
from render.mesh_io.load import load_mesh
from render.raster.select import choose_rasteriser

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMALL = {
    "text": "A mug",
    "sd_model": "data/tiny-sd",
    "device": "cpu",
    "batch": 2,
    "train_res": [64, 64],
    "preview_res": [32, 32],
    "texture_res": [64, 64],
    "guidance_weight": 7,
    "fovy_range": [38, 45],
    "camera_random_jitter": 0.1,
    "hash_n_levels": 6,
    "hash_log2_hashmap_size": 13,
    "hash_max_resolution": 64,
    "env_resolution": 64,
    "save_interval": 0,
    "video_interval": 0,
    "validate": False,
}
FIT = 80
PAINT = {"mode": "appearance_modeling", "iter": 3, "coarse_iter": 2, "learning_rate": 0.006}


def command(folder, *configs):
    """Run the configs in one command. Each config is a tuple (name, values)."""
    paths = []
    for name, values in configs:
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps({**SMALL, "out_dir": str(folder / name), **values}))
    assert train.main(["--config", *map(str, paths)]) == 0


def masks(v_pos, faces):
    """Return the coverage masks of a mesh from 8 sides."""
    mesh = make_mesh(v_pos.float(), faces)
    rasteriser = choose_rasteriser(CPU, "auto")
    return rasterize_gbuffer(mesh, orbit(8, (128, 128), 20.0, 45.0), rasteriser).mask() > 0.5


@pytest.fixture
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_mesh_with_a_hole_ten_times_too_large_and_off_centre(tmp_path, in_the_repository, monkeypatch):
    shorten_fit(FIT, monkeypatch.setattr)
    mug = trimesh.creation.cylinder(radius=5, height=12, sections=48).subdivide().subdivide()
    mug.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
    hole = (mug.triangles_center @ [0.6, 0, 0.8] > 4) & (np.abs(mug.triangles_center[:, 1]) < 3)
    mug.update_faces(~hole)
    mug.apply_translation([37, -12, 4])
    assert hole.any() and not mug.is_watertight
    mug.export(tmp_path / "mug.ply")
    start = {
        "sdf_init_shape": "custom_mesh",
        "base_mesh": str(tmp_path / "mug.ply"),
        "sdf_init_shape_scale": [0.75, 0.75, 0.75],
    }
    shape = {"iter": FIT + 4, "coarse_iter": FIT + 2, "dmtet_grid": 32, "mesh_scale": 2.0, **start}
    mesh_file = tmp_path / "shape/dmtet_mesh/mesh.obj"
    command(tmp_path, ("shape", shape), ("paint", {**PAINT, "base_mesh": str(mesh_file)}))
    made = load_mesh(mesh_file)
    sculpted = trimesh.Trimesh(made.v_pos.numpy(), made.faces.numpy())
    assert sculpted.is_watertight
    # `size` is the scale of the cylinder: the largest vertex distance of the scaled mesh is 0.75.
    size = 0.75 / np.hypot(5, 6)
    # Four steps change the volume only slightly. A scale that is wrong by a factor of 10 would change the
    # volume by a factor of 1000.
    assert sculpted.volume == pytest.approx(np.pi * 25 * 12 * size**3, rel=0.2)
    assert np.abs(sculpted.bounds.mean(0)).max() < 0.06
    assert (tmp_path / "paint/dmtet_mesh/mesh.glb").stat().st_size > 0


def test_obj_without_uv_far_from_the_origin_keeps_its_position(tmp_path, in_the_repository, caplog):
    cone = trimesh.creation.cone(radius=4, height=9, sections=24)
    cone.apply_translation([100, 5, -30])
    # The file has two materials, some inverted faces, and no texture coordinates (vt).
    faces = [list(face[::-1]) if i % 3 == 0 else list(face) for i, face in enumerate(cone.faces + 1)]
    lines = [f"v {x} {y} {z}" for x, y, z in cone.vertices]
    for i, face in enumerate(faces):
        lines += [f"usemtl {'red' if i < 10 else 'blue'}"] * (i in (0, 10)) + [
            f"f {face[0]} {face[1]} {face[2]}"
        ]
    (tmp_path / "cone.obj").write_text("mtllib cone.mtl\n" + "\n".join(lines) + "\n")
    own = {"base_mesh": str(tmp_path / "cone.obj"), "normalise_mesh": True}
    command(tmp_path, ("paint", {**PAINT, **own}))
    assert "flipped" in caplog.text
    painted = trimesh.load(tmp_path / "paint/dmtet_mesh/mesh.glb", force="mesh")
    assert np.allclose(painted.bounds, cone.bounds, atol=1e-4)
    assert painted.volume == pytest.approx(cone.volume, rel=1e-3)
    parts = trimesh.load(tmp_path / "paint/dmtet_mesh/mesh.glb").geometry.values()
    assert [part.visual.material.name for part in parts] == ["red", "blue"]
    for part in parts:
        colours = np.asarray(part.visual.material.baseColorTexture)[..., :3]
        assert colours.std() > 0 and part.visual.uv.min() >= 0 and part.visual.uv.max() <= 1
    log = [json.loads(line) for line in (tmp_path / "paint/log.jsonl").read_text().splitlines()]
    # The mesh is in view, so the gradient of the prior reaches the material.
    assert all(line["gradient_norm"] > 0 for line in log if "gradient_norm" in line)


def test_only_adding_detail_keeps_the_silhouette(tmp_path, in_the_repository, monkeypatch):
    shorten_fit(FIT, monkeypatch.setattr)
    start = {
        "sdf_init_shape": "custom_mesh",
        "base_mesh": "data/animal/animal.obj",
        "sdf_init_shape_scale": [0.85, 0.85, 0.85],
    }
    values = {
        "text": "A chair",
        "iter": FIT + 6,
        "coarse_iter": FIT,
        "dmtet_grid": 96,
        "mesh_scale": 2.0,
        "batch": 1,
    }
    command(tmp_path, ("shape", {**values, **start}))
    lines = (tmp_path / "shape/log.jsonl").read_text().splitlines()
    assert {json.loads(line)["phase"] for line in lines if "phase" in line} == {"fit", "fine"}
    made = load_mesh(tmp_path / "shape/dmtet_mesh/mesh.obj")
    shape = build_start_shape(StartShapeConfig(**start))
    before, after = masks(shape.v_pos, shape.faces), masks(made.v_pos, made.faces)
    # The legs are a few pixels wide. Without detail_band, the intersection over union would be 0.7 here and
    # would decrease with every step.
    share = (before & after).sum() / (before | after).sum()
    assert share > 0.9
