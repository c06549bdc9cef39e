"""Test config mistakes from bug reports. Each test is named after the reported case."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.cli import load_configs
from configs.errors import ConfigError
from configs.json_file import read_object

CUBE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Create an empty current directory and an empty home folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def write(name: str = "a.json", **values) -> str:
    Path(name).write_text(json.dumps({"out_dir": "thing", **values}))
    return name


def refusal(*argv: str) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        load_configs(argv)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_config_base_mesh_ignored(folder, caplog):
    Path("a.obj").write_text(CUBE)
    load_configs(["--config", write(), "--base_mesh", "a.obj"])
    (line,) = [record.getMessage() for record in caplog.records]
    assert "base_mesh has no effect with sdf_init_shape ellipsoid" in line and "custom_mesh" in line
    caplog.clear()
    load_configs(["--config", write(sdf_init_shape="custom_mesh"), "--base_mesh", "a.obj"])
    assert not caplog.records


@pytest.mark.parametrize(
    ("values", "idle"),
    [
        ({"normalise_mesh": True, "relight": "data/irrmaps/studio.hdr"}, "normalise_mesh, relight"),
        ({"kd_min": [0.1, 0, 0], "iter": 2000}, "kd_min"),
        ({"mode": "appearance_modeling", "base_mesh": "a.obj", "dmtet_grid": 128}, "dmtet_grid"),
        ({"mode": "appearance_modeling", "base_mesh": "a.obj", "translation_y": 0.3}, "translation_y"),
    ],
)
def test_keys_of_the_other_mode_are_reported(folder, caplog, values, idle):
    Path("a.obj").write_text(CUBE)
    load_configs(["--config", write(**values)])
    lines = [record.getMessage() for record in caplog.records if "these keys" in record.getMessage()]
    assert [line.rpartition(": ")[2] for line in lines] == [idle]


def test_key_with_its_default_value_is_not_reported(folder, caplog):
    load_configs(["--config", write(normalise_mesh=False, kd_min=[0, 0, 0], front_threshold=45)])
    assert not caplog.records


def test_front_threshold_without_directional_text_is_reported(folder, caplog):
    load_configs(["--config", write(front_threshold=30)])
    assert "front_threshold has no effect without add_directional_text" in caplog.text


HINTS = {
    '{\n  "iter": 1,\n}\n': (2, 12, "remove the comma after the last entry"),
    '{"train_res": [64, 64,]}': (1, 22, "remove the comma after the last entry"),
    '{\n  "iter": 1, // few\n  "batch": 1\n}': (2, 14, "JSON has no comments"),
    '# mine\n{"iter": 1}': (1, 1, "JSON has no comments"),
    '{"iter": 1 /* few */}': (1, 12, "JSON has no comments"),
    '{"validate": True}': (1, 14, "write true, not True"),
    '{"validate": FALSE}': (1, 14, "write false, not FALSE"),
    '{"envmap": None}': (1, 12, "write null, not None"),
    "{'iter': 1}": (1, 2, "double quotes"),
    "{“iter”: 1}": (1, 2, "double quotes"),
    "{iter: 1}": (1, 2, '"iter" in double quotes'),
    '{"device": cpu}': (1, 12, '"cpu" in double quotes'),
    '{"iter": 1\n "batch": 1}': (2, 2, "a comma is missing"),
    '{"mesh_scale": .5}': (1, 16, "0.5, not .5"),
    '{"mesh_scale": 2.}': (1, 17, "0.5, not .5"),
    '{"seed": 007}': (1, 11, "no leading zeros"),
    '{"out_dir": "C:\\data"}': (1, 16, "backslash"),
    '{"text": "A mug': (1, 10, "no closing double quote"),
    '{"text": "A\nmug"}': (1, 12, "cannot contain a line break"),
    '{"iter": 1': (1, 11, "add the missing }"),
    '{"iter": 1}}': (1, 12, "after the end of the object"),
    " ": (1, 2, "the file is empty"),
}


@pytest.mark.parametrize("text", HINTS)
def test_config_json_hints(tmp_path, text):
    path = tmp_path / "slip.json"
    path.write_text(text)
    line, column, fix = HINTS[text]
    with pytest.raises(ConfigError) as caught:
        read_object(path)
    message = str(caught.value)
    assert message.isprintable() and f"slip.json, line {line}," in message and fix in message
    # The column of some errors differs slightly between Python 3.13 and older versions.
    assert abs(int(message.split("column ")[1].split(":")[0]) - column) <= 2


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("prompt", "text"),
        ("negative_prompt", "negative_text"),
        ("steps", "iter"),
        ("workspace", "out_dir"),
        ("guidance_scale", "guidance_weight"),
        ("lr", "learning_rate"),
    ],
)
def test_config_nearest_key(folder, key, known):
    assert refusal("--config", write(**{key: 1})).endswith(f'the nearest known key is "{known}"')
    assert refusal("--config", write(), f"--{key}", "1").endswith(f"the nearest known one is --{known}")


def test_key_without_effect_is_not_suggested(folder):
    for key in ("pp", "sp", "layer", "lock_lights", "ref_meshes"):
        message = refusal("--config", write(**{key: 1}))
        assert not message.endswith(('"spp"', '"layers"', '"lock_light"', '"ref_mesh"'))


def test_config_tilde(folder):
    home = folder / "home"
    (home / "mesh.obj").write_text(CUBE)
    (home / "map.hdr").write_bytes(b"")
    (home / "grid.npz").write_bytes(b"")
    values = {
        "out_dir": "~/results",
        "base_mesh": "~/mesh.obj",
        "envmap": "~/map.hdr",
        "relight": "~/map.hdr",
        "tet_grid_file": "~/grid.npz",
        "sd_model": "~/model",
        "lora": ["~/a.safetensors:0.7", "b~c.safetensors"],
    }
    expected = {key: value.replace("~", str(home)) for key, value in values.items() if isinstance(value, str)}
    expected["lora"] = [f"{home}/a.safetensors:0.7", "b~c.safetensors"]
    (config,) = load_configs(["--config", write(**values)])
    assert expected.items() <= config.to_json().items()
    assert config.run.output_folder == home / "results"
    options = [word for key, value in values.items() if key != "lora" for word in (f"--{key}", value)]
    (config,) = load_configs(["--config", write(), *options, "--lora", "~/a.safetensors"])
    assert config.run.base_mesh == str(home / "mesh.obj")
    assert config.guidance.lora == (f"{home}/a.safetensors",)


def test_a_chain_with_tilde_reads_the_mesh_of_the_first_config(folder):
    write("one.json", out_dir="~/one")
    write("two.json", out_dir="~/two", mode="appearance_modeling", base_mesh="~/one/dmtet_mesh/mesh.obj")
    one, two = load_configs(["--config", "one.json", "two.json"])
    assert Path(two.run.base_mesh) == one.run.mesh_path == folder / "home/one/dmtet_mesh/mesh.obj"


def damaged_inputs(folder: Path) -> dict[str, tuple[str, str]]:
    """Write damaged files. Return {key: (value, expected part of the error message)}."""
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(folder / "ldr.png")
    (folder / "png.hdr").write_bytes((folder / "ldr.png").read_bytes())
    (folder / "cut.hdr").write_bytes(b"#?RADIANCE\n\n-Y 4 +X 8\n\1\2")
    (folder / "cut.npz").write_bytes(b"PK\3\4")
    (folder / "text.safetensors").write_bytes(b"text")
    return {
        "envmap": ("ldr.png", "ldr.png"),
        "relight": ("cut.hdr", "cut.hdr"),
        "tet_grid_file": ("cut.npz", "cut.npz"),
        "lora": ("none.safetensors", "none.safetensors"),
    }


@pytest.mark.parametrize("key", ["envmap", "relight", "tet_grid_file", "lora"])
def test_dry_run_maps(folder, key):
    value, says = damaged_inputs(folder)[key]
    message = refusal("--config", write(), f"--{key}", value, "--dry-run")
    assert says in message


def test_a_dry_run_reads_the_mesh(folder, capsys):
    Path("a.obj").write_text(CUBE.replace("1 2 3", "1 2 9"))
    argv = ["--config", write(mode="appearance_modeling", base_mesh="a.obj"), "--dry-run"]
    assert "a.obj" in refusal(*argv)
    Path("a.obj").write_text(CUBE)
    with pytest.raises(SystemExit) as left:
        load_configs(argv)
    assert left.value.code == 0 and json.loads(capsys.readouterr().out)["base_mesh"] == "a.obj"


def test_control_characters_of_a_config_are_escaped(folder):
    Path("a\x1b[31m.json").write_text("{")
    assert "\\x1b[31m" in refusal("--config", "a\x1b[31m.json")
    assert "\x1b" not in refusal("--config", write(**{"a\x1bb": 1}))
    assert "\x1b" not in refusal("--config", write(base_mesh="x\x1b[0m.obj"))
