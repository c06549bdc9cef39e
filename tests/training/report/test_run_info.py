"""Test the config values in the report, and the commands that repeat the run."""

import json
import shlex

import pytest

from configs.cli import load_configs
from configs.schema import known_keys, parse_config
from render.image_io.atomic import write_text
from training.report.run_info import commands_of, config_file, run_info, settings_of


@pytest.fixture
def config(tmp_path):
    values = {
        "out_dir": str(tmp_path / "my mug"),
        "text": "it's a mug; rm -rf",
        "guidance_weight": 100,
        "seed": 7,
        "kd_min": [0.1, 0, 0],
    }
    return parse_config(values, "a.json")


def test_only_changed_keys_are_marked(config):
    settings = settings_of(config)
    assert [setting.key for setting in settings] == list(known_keys())
    changed = {setting.key: (setting.value, setting.default) for setting in settings if setting.changed}
    assert changed.keys() == {"out_dir", "text", "seed", "kd_min"}
    assert changed["seed"] == ("7", "42") and changed["kd_min"] == ("[0.1, 0.0, 0.0]", "[0.0, 0.0, 0.0]")
    # The value 100 in the file is equal to the default 100.0, so it is not marked.
    assert next(setting for setting in settings if setting.key == "guidance_weight").value == "100.0"


def test_the_written_config_is_the_config(config):
    write_text(config_file(config), run_info(config, [], {}).resolved_config)
    assert parse_config(json.loads(config_file(config).read_text()), "written") == config


def test_the_commands_make_the_same_run(config):
    write_text(config_file(config), run_info(config, [], {}).resolved_config)
    resume, again, given = commands_of(config, ["--config", "a.json", "--text", "it's"]).values()
    assert shlex.split(given) == ["python3", "train.py", "--config", "a.json", "--text", "it's"]
    assert load_configs(shlex.split(resume)[2:]) == [config]
    (copy,) = load_configs(shlex.split(again)[2:])
    assert copy.run.output_folder != config.run.output_folder
    assert {**copy.to_json(), "out_dir": ""} == {**config.to_json(), "out_dir": ""}


def test_run_without_a_prompt_has_the_name_of_its_folder(config):
    assert run_info(config, [], {}).title == "it's a mug; rm -rf"
    nameless = parse_config({"out_dir": "mug"}, "b.json")
    assert (run_info(nameless, [], {}).title, run_info(nameless, [], {}).kind) == ("mug", "shape")
