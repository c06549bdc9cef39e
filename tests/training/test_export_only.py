"""Test that --export-only repeats the export of the same checkpoint and changes no other files."""

import json
import logging

import pytest
import trimesh
from PIL import Image
from reduced_work import shorten_fit

import train
from sd.stable_diffusion import StableDiffusion

FIT = 100
TINY = {
    "batch": 1,
    "train_res": [16, 16],
    "preview_res": [16, 16],
    "texture_res": [64, 64],
    "dmtet_grid": 24,
    "mesh_scale": 2.0,
    "hash_n_levels": 3,
    "hash_log2_hashmap_size": 10,
    "hash_max_resolution": 32,
    "env_resolution": 64,
    "guidance_weight": 1,
    "video_interval": 0,
    "validate": False,
    "device": "cpu",
}


def write_config(folder, name, model, **values):
    path = folder / f"{name}.json"
    own = {"out_dir": str(folder / name), "sd_model": str(model), "text": "a car"}
    path.write_text(json.dumps({**TINY, **own, **values}))
    return str(path)


@pytest.fixture(autouse=True, scope="module")
def short_fit():
    with pytest.MonkeyPatch.context() as patch:
        shorten_fit(FIT, patch.setattr)
        yield


@pytest.fixture(scope="module")
def pair(model_folder, tmp_path_factory):
    """Finish a geometry run and an appearance run. Return the folder and the two configs."""
    folder = tmp_path_factory.mktemp("export")
    shape = write_config(
        folder, "shape", model_folder, iter=FIT, coarse_iter=0, sdf_init_shape_scale=[0.6] * 3
    )
    mesh = str(folder / "shape/dmtet_mesh/mesh.obj")
    settings = {"mode": "appearance_modeling", "base_mesh": mesh, "iter": 2, "coarse_iter": 1}
    paint = write_config(folder, "paint", model_folder, **settings)
    assert train.main(["--config", shape, paint]) == 0
    return folder, shape, paint


@pytest.fixture(autouse=True)
def everything_is_logged(caplog):
    caplog.set_level(logging.INFO)


def contents(folder):
    """Return {file: content} without the report and config.json, which depend on the last command."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    changed_always = ("report.html", "config.json")
    return {path.relative_to(folder): path.read_bytes() for path in files if path.name not in changed_always}


def changed(before, after):
    assert before.keys() == after.keys()
    return {str(path) for path in before if before[path] != after[path]}


def test_painted_mesh_is_exported_with_fewer_faces_and_other_textures(pair, monkeypatch, caplog):
    folder, shape, paint = pair
    monkeypatch.setattr(StableDiffusion, "from_pretrained", None)  # export needs no prior
    before = contents(folder)
    command = [
        "--config",
        shape,
        paint,
        "--export-only",
        "--texture_res",
        "32",
        "48",
        "--export_faces",
        "150",
    ]
    assert train.main(command) == 0
    files = ["mesh.obj", "mesh.glb"]
    files += [f"texture_{name}.png" for name in ("kd", "ks", "n", "roughness", "metallic")]
    assert changed(before, contents(folder)) == {f"paint/dmtet_mesh/{file}" for file in files}
    assert Image.open(folder / "paint/dmtet_mesh/texture_n.png").size == (48, 32)
    for file in files[:2]:
        mesh = trimesh.load(folder / "paint/dmtet_mesh" / file, force="mesh")
        mesh.merge_vertices(merge_tex=True, merge_norm=True)
        assert len(mesh.faces) == 150 and mesh.is_watertight, file
    assert "is not exported again" in caplog.text and "shape" in caplog.text
    assert train.main(["--config", shape, paint, "--export-only"]) == 0
    assert not changed(before, contents(folder))  # the original files are restored byte for byte
    assert train.main(["--config", shape, paint]) == 0


def test_geometry_without_appearance_is_exported_with_a_warning(model_folder, tmp_path, caplog):
    config = write_config(
        tmp_path, "shape", model_folder, iter=FIT, coarse_iter=0, sdf_init_shape_scale=[0.6] * 3
    )
    assert train.main(["--config", config]) == 0
    before = contents(tmp_path)
    assert train.main(["--config", config, "--export_faces", "200"]) == 0
    assert not changed(before, contents(tmp_path))  # the mesh is not changed
    assert "is already exported (--export-only writes it again)" in caplog.text
    assert train.main(["--config", config, "--export-only", "--export_faces", "200"]) == 0
    assert changed(before, contents(tmp_path)) == {"shape/dmtet_mesh/mesh.obj", "shape/dmtet_mesh/mesh.glb"}
    mesh = trimesh.load(tmp_path / "shape/dmtet_mesh/mesh.glb", force="mesh")
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert len(mesh.faces) == 200 and mesh.is_watertight
    assert "a run that paints an earlier export of this mesh cannot resume" in caplog.text


def test_missing_checkpoint_gives_a_one_line_error(model_folder, tmp_path, caplog):
    config = write_config(tmp_path, "shape", model_folder)
    assert train.main(["--config", config, "--export-only"]) == 2
    message = caplog.records[-1].getMessage()
    assert "no checkpoint" in message and "without --export-only" in message
    assert not (tmp_path / "shape").exists()


def test_checkpoint_of_another_run_is_rejected(pair, caplog):
    _, shape, _ = pair
    assert train.main(["--config", shape, "--export-only", "--seed", "9"]) == 2
    assert "another seed" in caplog.records[-1].getMessage()


def test_export_only_is_not_for_a_sweep(pair, caplog):
    _, shape, _ = pair
    assert train.main(["--config", shape, "--export-only", "--grid", "seed=1,2"]) == 2
    assert "--export-only is for one result" in caplog.records[-1].getMessage()
