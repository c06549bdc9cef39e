"""Test names, values and pairs of the configs in configs/gallery.

Each pair runs at toy size with a toy prior.
"""

import functools
import json
import re
from pathlib import Path

import pytest
from reduced_work import shorten_fit

import train
from configs.json_file import read_object
from configs.overrides import resolve_chain
from configs.schema import NO_EFFECT, known_keys, parse_config
from geometry.start_shape import build_start_shape
from sd import schedule
from sd.stable_diffusion import StableDiffusion
from training import tasks

ROOT = Path(__file__).parents[2]
# The recipes, which are configs for the mesh of a user, are tested in test_recipes.py.
GALLERY = [
    path for path in sorted((ROOT / "configs/gallery").glob("*.json")) if not path.stem.startswith("recipe_")
]
SHIPPED = [*sorted((ROOT / "configs").glob("*.json")), *GALLERY]
NAME = re.compile(r"([A-Za-z]+)_(geometry|appearance)(_\w+)?")
VALUES = {path.stem: read_object(path) for path in SHIPPED}
CONFIGS = {path.stem: parse_config(VALUES[path.stem], path.name) for path in SHIPPED}
MINE = [path.stem for path in GALLERY]


def pairs():
    """Return pairs (geometry, appearance) of config files.

    The appearance config reads the mesh that the geometry config writes.
    """
    writers = {str(c.run.mesh_path): n for n, c in CONFIGS.items() if c.run.mode == "geometry_modeling"}
    paths = {path.stem: path for path in SHIPPED}
    painters = [name for name, config in CONFIGS.items() if config.run.mode == "appearance_modeling"]
    return [(paths[writers[CONFIGS[name].run.base_mesh]], paths[name]) for name in painters]


def test_gallery_contains_enough_complete_pairs():
    assert len(MINE) >= 24
    assert {path for pair in pairs() for path in pair} == set(SHIPPED)


@pytest.mark.parametrize("name", MINE)
def test_file_names_and_minimal_contents(name):
    keyword, mode, _ = NAME.fullmatch(name).groups()
    config, values = CONFIGS[name], VALUES[name]
    assert config.run.mode == f"{mode}_modeling"
    assert config.run.out_dir == (keyword if mode == "geometry" else name)
    assert not NO_EFFECT & values.keys()
    as_default = [key for key, value in values.items() if known_keys()[key].default == value]
    assert as_default == []


def test_all_configs_write_to_different_folders():
    folders = [config.run.output_folder for config in CONFIGS.values()]
    assert len(set(folders)) == len(folders)


def test_a_pair_has_one_text():
    for geometry, appearance in pairs():
        assert CONFIGS[geometry.stem].guidance.text == CONFIGS[appearance.stem].guidance.text


@pytest.mark.parametrize("name", [n for n in MINE if CONFIGS[n].run.mode == "geometry_modeling"])
def test_a_start_shape_lies_within_its_box_and_the_cameras_sight(name):
    config = CONFIGS[name]
    shape = build_start_shape(config.start_shape)
    assert shape.v_pos.abs().max() < 0.95 * config.geometry.mesh_scale / 2
    # At the distance of the origin, the widest field of view (45°) shows 3 tan(45°/2) = 1.24 units on each
    # side of the origin.
    assert 0.3 < shape.v_pos.norm(dim=-1).max() < 1.24


def test_gallery_covers_all_documented_features():
    mine = {name: CONFIGS[name] for name in MINE}
    geometry = [c for c in mine.values() if c.run.mode == "geometry_modeling"]
    paint = [c for c in mine.values() if c.run.mode == "appearance_modeling"]
    assert {c.start_shape.sdf_init_shape for c in geometry} == {"ellipsoid", "cylinder", "custom_mesh"}
    assert {c.geometry.dmtet_grid for c in geometry} == {128, 256}
    assert {c.schedule.sds_weight_strategy for c in paint} == {0, 1, 2}
    guides = {Path(c.run.base_mesh).stem for c in geometry if c.run.base_mesh}
    assert guides == {"head", "person", "animal", "chair"}
    assert any(c.start_shape.sdf_init_shape_rotate_x for c in geometry)
    assert any(c.start_shape.translation_y for c in geometry)
    assert any(c.start_shape.translation_z for c in geometry)
    assert any(c.schedule.early_time_step_range[0] >= 0.4 for c in geometry)
    assert any(c.run.flip_normal for c in geometry)
    assert any(c.schedule.coarse_iter == schedule.FIT_STEPS for c in geometry)  # no coarse phase
    assert any(c.guidance.negative_text for c in geometry) and any(c.guidance.negative_text for c in paint)
    assert any(c.material.ks_min[2] == c.material.ks_max[2] == 1 for c in paint)
    assert any(c.light.relight for c in paint) and any(c.light.learn_light for c in paint)
    assert any(c.light.camera_space_light for c in paint)


def test_the_readme_has_a_row_for_each_pair():
    table = (ROOT / "configs/gallery/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| .+? \|$", table, re.M)
    assert sorted(rows) == sorted(
        (geometry.stem, appearance.stem) for geometry, appearance in pairs() if geometry in GALLERY
    )


SMALL = {
    "device": "cpu",
    "batch": 1,
    "train_res": [16, 16],
    "dmtet_grid": 24,
    "hash_n_levels": 3,
    "hash_log2_hashmap_size": 10,
    "hash_max_resolution": 32,
    "env_resolution": 64,
    "texture_res": [64, 64],
    "preview_res": [16, 16],
    "video_interval": 0,
    "validate": False,
    # The guidance weight and the learning rate are small, because large gradients would remove the small
    # surface. All parts of a step are executed nevertheless.
    "guidance_weight": 1,
    "learning_rate": 4e-3,
}
FIT = 32


@pytest.fixture(scope="module")
def made_once():
    """Return cached loaders of the prior and of fixed lights, which many runs share."""
    return functools.cache(StableDiffusion.from_pretrained), functools.cache(tasks.load_environment)


@pytest.mark.parametrize(("geometry", "appearance"), pairs(), ids=lambda path: path.stem)
def test_every_pair_runs_two_steps_of_each_kind(
    geometry, appearance, made_once, model_folder, tmp_path, monkeypatch
):
    prior, light = made_once
    monkeypatch.chdir(ROOT)
    shorten_fit(FIT, monkeypatch.setattr)
    monkeypatch.setattr(StableDiffusion, "from_pretrained", prior)
    # All runs of this module share the prior, so no run may free its text encoder.
    monkeypatch.setattr(StableDiffusion, "free_text_encoder", lambda self: None)
    if not CONFIGS[appearance.stem].light.learn_light:
        monkeypatch.setattr(tasks, "load_environment", light)
    mesh = tmp_path / geometry.stem / "dmtet_mesh/mesh.obj"
    commands = []
    for path, own in (
        (geometry, {"iter": FIT + 2, "coarse_iter": FIT + 1, "save_interval": 0}),
        (appearance, {"iter": 2, "coarse_iter": 1, "save_interval": 2, "base_mesh": str(mesh)}),
    ):
        # These values replace those of the file. They are not given as command-line options, because the two
        # configs need different values.
        own |= {"sd_model": str(model_folder), "out_dir": str(tmp_path / path.stem)}
        # The shipped ControlNet does not fit the toy prior. Painting with a ControlNet is tested in
        # tests/training/test_priors.py.
        own |= {"control_model": None}
        values = {**read_object(path), **SMALL, **own}
        commands.append(tmp_path / path.name)
        commands[-1].write_text(json.dumps(values))
    assert train.main(["--config", *map(str, commands)]) == 0
    for path, phases in ((geometry, {"fit", "coarse", "fine"}), (appearance, {"early", "late"})):
        out = tmp_path / path.stem
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert {line["phase"] for line in lines if "phase" in line} == phases
        assert (out / "dmtet_mesh/mesh.glb").stat().st_size > 0
    assert (tmp_path / appearance.stem / "stills/000002.png").is_file()


@pytest.mark.parametrize(("geometry", "appearance"), pairs(), ids=lambda path: path.stem)
def test_second_config_follows_the_mesh_to_another_folder(geometry, appearance):
    first, second = resolve_chain([read_object(geometry), read_object(appearance)], {"out_dir": "else"})
    assert second["base_mesh"] == "out/else/dmtet_mesh/mesh.obj"
