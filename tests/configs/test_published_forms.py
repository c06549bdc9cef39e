"""Test that the command-line forms and key names of the published program are accepted."""

import json
from pathlib import Path

import pytest

from configs.cli import load_configs
from configs.errors import ConfigError


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    """Create a config file and a mesh in the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(json.dumps({"out_dir": "thing"}))
    Path("mesh.obj").touch()
    return "a.json"


def values(*words):
    (config,) = load_configs(["--config", "a.json", *words])
    return config.to_json()


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["-i", "1700"], "iter", 1700),
        (["-b", "3"], "batch", 3),
        (["-r", "128", "128"], "train_res", [128, 128]),
        (["--train-res", "128", "128"], "train_res", [128, 128]),
        (["-dr", "64", "64"], "preview_res", [64, 64]),
        (["--display-res", "64", "64"], "preview_res", [64, 64]),
        (["--display_res=[64, 64]"], "preview_res", [64, 64]),
        (["-tr", "256", "256"], "texture_res", [256, 256]),
        (["--texture-res", "256", "256"], "texture_res", [256, 256]),
        (["-si", "50"], "save_interval", 50),
        (["--save-interval=50"], "save_interval", 50),
        (["-vi", "5"], "video_interval", 5),
        (["-o", "other"], "out_dir", "other"),
        (["--out-dir", "other"], "out_dir", "other"),
        (["-bm", "mesh.obj"], "base_mesh", "mesh.obj"),
        (["--base-mesh", "mesh.obj"], "base_mesh", "mesh.obj"),
        (["--add_directional_text"], "add_directional_text", True),
        (["--if_flip_the_normal", "--seed", "4"], "if_flip_the_normal", True),
        (["--add-directional-text", "false"], "add_directional_text", False),
    ],
)
def test_a_published_form_sets_the_key(words, key, value):
    assert values(*words)[key] == value


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["-s", "1"], "spp"),
        (["-l", "1"], "layers"),
        (["-mr", "0.08"], "min_roughness"),
        (["--min-roughness", "0.08"], "min_roughness"),
        (["-mip"], "custom_mip"),
        (["--custom-mip"], "custom_mip"),
        (["-rt"], "random_textures"),
        (["--random-textures"], "random_textures"),
        (["-rm", "x.obj"], "ref_mesh"),
        (["--gpu_number", "4"], "gpu_number"),
    ],
)
def test_published_form_without_effect_is_logged(words, key, caplog):
    plain = values()
    assert values(*words) == plain
    assert [record.getMessage() for record in caplog.records] == [
        f"these keys are accepted and have no effect: {key}"
    ]


def test_published_names_in_a_file():
    Path("a.json").write_text(json.dumps({"out_dir": "x", "display_res": [64, 32], "gpu_number": 2}))
    assert values()["preview_res"] == [64, 32]
    Path("a.json").write_text(json.dumps({"out_dir": "x", "display_res": [64, 64], "preview_res": [8, 8]}))
    with pytest.raises(ConfigError, match="mean the same; keep one of them"):
        values()


def test_the_short_form_of_the_background():
    paint = {"out_dir": "paint", "mode": "appearance_modeling", "base_mesh": "mesh.obj"}
    Path("a.json").write_text(json.dumps(paint))
    assert values("-bg", "white")["train_background"] == "white"


def test_option_is_not_parsed_as_the_value_of_another():
    assert values("--text", "a", "mug", "-b", "2")["text"] == "a mug"


@pytest.mark.parametrize("word", ["--geometry.iter", "--geometry.iter=600"])
def test_an_option_for_one_stage(word, caplog):
    caplog.set_level("INFO")
    paint = {"out_dir": "paint", "mode": "appearance_modeling", "base_mesh": "mesh.obj", "iter": 2000}
    Path("b.json").write_text(json.dumps(paint))
    words = [word] if "=" in word else [word, "600"]
    shape, painted = load_configs(["--config", "a.json", "b.json", *words, "--appearance.batch", "2"])
    assert (shape.schedule.iter, painted.schedule.iter) == (600, 2000)
    assert (shape.run.batch, painted.run.batch) == (1, 2)
    assert shape.schedule.coarse_iter == 600  # --iter limits coarse_iter, too
    shape, painted = load_configs(["--config", "a.json", "b.json", *words, "--iter", "1500"])
    assert (shape.schedule.iter, painted.schedule.iter) == (600, 1500)


def test_another_text_for_one_stage_changes_its_folder():
    Path("b.json").write_text(
        json.dumps({"out_dir": "p", "mode": "appearance_modeling", "base_mesh": "mesh.obj"})
    )
    shape, painted = load_configs(["--config", "a.json", "b.json", "--appearance.text", "A golden mug"])
    assert (shape.guidance.text, painted.guidance.text) == ("", "A golden mug")
    assert painted.run.out_dir == "p-a-golden-mug"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--geometry.iter", "0"], 'a.json, --geometry.iter on the command line: key "iter" has the value 0'),
        (["--geometry.itr", "5"], "the nearest known one is --geometry.iter"),
        (["--geometry.out_dir", "x"], "unknown option"),
        (["--appearance.iter", "5"], "--appearance.iter applies to appearance_modeling, and no config"),
    ],
)
def test_a_bad_option_for_one_stage(words, says):
    with pytest.raises(ConfigError) as caught:
        values(*words)
    assert says in str(caught.value)
