"""Test the shipped config files.

Each file is valid and has the published values. Each appearance config reads the mesh of a geometry config.
"""

import json
import os
from pathlib import Path

import pytest

from configs.cli import load_configs
from configs.json_file import read_object
from configs.schema import NO_EFFECT, parse_config

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "configs").glob("*.json"))

# These are the values of the published configs (Fantasia3D, Chen et al. 2023).
EVERY = {
    "train_res": [512, 512],
    "fovy_range": [25.71, 45],
    "elevation_range": [-10, 45],
    "train_background": "black",
    "save_interval": 100,
}
GEOMETRY = {
    **EVERY,
    "mode": "geometry_modeling",
    "camera_random_jitter": 0.4,
    "iter": 3000,
    "coarse_iter": 1500,
    "add_directional_text": True,
}
APPEARANCE = {
    **EVERY,
    "mode": "appearance_modeling",
    "camera_random_jitter": 0.2,
    "env_scale": 2,
    "early_time_step_range": [0.02, 0.98],
    "late_time_step_range": [0.02, 0.5],
}
CAR = "A car made out of cheese"
TABLE = {
    "pineapple_geometry_single_gpu": {
        **GEOMETRY,
        "text": "A pineapple",
        "sdf_init_shape": "ellipsoid",
        "sdf_init_shape_scale": [0.56, 0.74, 0.56],
        "translation_y": -0.3,
        "batch": 6,
        "dmtet_grid": 128,
        "mesh_scale": 2.4,
        "guidance_weight": 50,
        "add_directional_text": False,
        "out_dir": "pineapple1",
    },
    "pineapple_appearance_strategy0_single_gpu": {
        **APPEARANCE,
        "text": "A pineapple",
        "base_mesh": "out/pineapple1/dmtet_mesh/mesh.obj",
        "iter": 2000,
        "coarse_iter": 300,
        "batch": 4,
        "texture_res": [2048, 2048],
        "kd_min": [0.03, 0.03, 0.03],
        "kd_max": [0.97, 0.97, 0.97],
        "ks_max": [0, 0.9, 0],
        "guidance_weight": 50,
        "add_directional_text": True,
        "sds_weight_strategy": 0,
    },
    "car_geometry": {
        **GEOMETRY,
        "text": CAR,
        "sdf_init_shape": "ellipsoid",
        "sdf_init_shape_scale": [0.56, 0.56, 0.84],
        "batch": 4,
        "dmtet_grid": 128,
        "mesh_scale": 2.3,
        "guidance_weight": 100,
        "if_flip_the_normal": True,
        "out_dir": "car1",
    },
    "car_appearance_strategy0": {
        **APPEARANCE,
        "text": CAR,
        "base_mesh": "out/car1/dmtet_mesh/mesh.obj",
        "batch": 3,
        "ks_max": [0, 0.9, 0],
        "guidance_weight": 50,
        "sds_weight_strategy": 0,
    },
    "Gundam_geometry": {
        **GEOMETRY,
        "text": "Mobile Suit Gundam",
        "sdf_init_shape": "custom_mesh",
        "base_mesh": "data/person/person.obj",
        "sdf_init_shape_scale": [1.2, 1.2, 1.2],
        "translation_y": -0.1,
        "batch": 4,
        "dmtet_grid": 256,
        "mesh_scale": 2.5,
        "guidance_weight": 100,
        "seed": 520,
    },
    "Gundam_appearance": {
        **APPEARANCE,
        "text": "Mobile Suit Gundam",
        "sds_weight_strategy": 1,
        "batch": 3,
        "ks_max": [0, 0.7, 0],
        "guidance_weight": 100,
        "late_time_step_range": [0.02, 0.98],
    },
}


def load(path: Path):
    return parse_config(read_object(path), path.name)


def test_published_configs_and_demo_pair_exist():
    names = {path.stem for path in PATHS}
    assert names >= {*TABLE, "pineapple_demo_geometry", "pineapple_demo_appearance"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_each_parses_and_holds_no_key_without_effect(path):
    load(path)
    assert not NO_EFFECT & read_object(path).keys()


@pytest.mark.parametrize("name", TABLE)
def test_published_configs_equal_the_table(name):
    values = load(ROOT / "configs" / f"{name}.json").to_json()
    assert {key: values[key] for key in TABLE[name]} == TABLE[name]


def test_every_appearance_config_paints_what_a_geometry_config_writes():
    configs = {path.stem: load(path) for path in PATHS}
    written = {
        str(config.run.mesh_path): config
        for config in configs.values()
        if config.run.mode == "geometry_modeling"
    }
    for name, config in configs.items():
        mesh = config.run.base_mesh
        if config.run.mode == "appearance_modeling":
            assert mesh in written, f"{name}: no shipped geometry config writes {mesh}"
            assert written[mesh].guidance.text == config.guidance.text, name


def test_every_start_shape_that_is_named_is_shipped():
    for path in PATHS:
        run = load(path).run
        if run.mode == "geometry_modeling" and run.base_mesh is not None:
            assert (ROOT / run.base_mesh).is_file(), f"{path.stem}: {run.base_mesh} is not there"


def test_control_net_of_the_demo_is_shipped_and_is_its_only_change():
    path = ROOT / "configs" / "pineapple_demo_control_appearance.json"
    plain = read_object(path.with_name("pineapple_demo_appearance.json"))
    changed = {key: value for key, value in read_object(path).items() if plain.get(key) != value}
    assert changed.keys() == {"out_dir", "control_model", "control"}
    assert changed["control"] == "depth" and (ROOT / changed["control_model"] / "config.json").is_file()


def test_gallery_configs_write_to_different_folders():
    folders = [load(path).run.output_folder for path in PATHS]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path", [path for path in PATHS if "appearance" in path.stem], ids=lambda p: p.stem)
def test_each_pair_runs_in_one_command(path, tmp_path, monkeypatch):
    stem = path.stem.replace("appearance", "geometry").replace("_strategy0", "").replace("_control", "")
    geometry = ROOT / "configs" / f"{stem}.json"
    monkeypatch.chdir(tmp_path)
    start = json.loads(geometry.read_text()).get("base_mesh")
    if start:
        os.makedirs(Path(start).parent)
        Path(start).touch()
    for options in ([], ["--out_dir", "other"], ["--text", "A mug"]):
        first, second = load_configs(["--config", str(geometry), str(path), *options])
        assert Path(second.run.base_mesh) == first.run.mesh_path
