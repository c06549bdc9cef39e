"""Test the demo: a command with --text and without --config runs the demo pair of configs."""

import json
from pathlib import Path

import pytest

from configs.cli import load_configs, read_command
from configs.demo import PAIR, QUICK, START_SHAPES, demo_paths, start_shape
from configs.errors import ConfigError
from configs.json_file import read_object
from configs.schema import parse_config
from training.sweep.trials import load_sweep

ROOT = Path(__file__).parents[2]
TABLE = json.loads(START_SHAPES.read_text())


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Make tmp_path, an empty folder outside the repository, the current directory, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_text_alone_runs_the_demo_pair_in_folders_named_after_it():
    geometry, appearance = load_configs(["--text", "A red mug"])
    assert str(geometry.run.output_folder) == "out/a-red-mug/geometry"
    assert str(appearance.run.output_folder) == "out/a-red-mug/appearance"
    assert appearance.run.base_mesh == "out/a-red-mug/geometry/dmtet_mesh/mesh.obj"
    assert geometry.guidance.text == appearance.guidance.text == "A red mug"
    assert geometry.start_shape.sdf_init_shape_scale == (0.55, 0.55, 0.55)


def test_all_other_keys_are_those_of_the_config_files():
    pair = load_configs(["--text", "A pineapple"])
    moved = {"out_dir", "base_mesh"}
    for path, config in zip(demo_paths(), pair, strict=True):
        expected = parse_config(read_object(path), path).to_json()
        found = config.to_json()
        assert {key for key in found if found[key] != expected[key]} <= moved


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("A golden car", (0.45, 0.45, 0.65)),
        ("An ice cream cone", (0.45, 0.65, 0.45)),
        ("A donut", (0.55, 0.55, 0.55)),
        ("A keyboard", (0.45, 0.65, 0.45)),
    ],
)
def test_the_start_shape_follows_from_the_category(text, scale):
    assert load_configs(["--text", text])[0].start_shape.sdf_init_shape_scale == scale


def test_an_option_takes_precedence_over_the_category():
    argv = ["--text", "A car", "--sdf_init_shape_scale", "1", "1", "1", "--out_dir", "mine/car"]
    geometry, appearance = load_configs(argv)
    assert geometry.start_shape.sdf_init_shape_scale == (1, 1, 1)
    assert [geometry.run.out_dir, appearance.run.out_dir] == ["mine/car/geometry", "mine/car/appearance"]


def test_quick_changes_the_steps_and_the_folder():
    pair = load_configs(["--text", "A red mug", "--quick", "--seed", "3"])
    assert [config.run.out_dir for config in pair] == [
        "a-red-mug-quick/geometry",
        "a-red-mug-quick/appearance",
    ]
    for config, stage in zip(pair, PAIR, strict=True):
        values = config.to_json()
        assert {key: values[key] for key in QUICK[stage]} == QUICK[stage]
        assert config.run.seed == 3
    assert [config.guidance.text for config in load_configs(["--quick"])] == ["A pineapple"] * 2
    with pytest.raises(ConfigError, match="--quick is for the demo pair"):
        load_configs(["--quick", "--config", demo_paths()[0]])


def test_a_bad_value_is_reported_with_the_option():
    with pytest.raises(ConfigError, match="pineapple_demo_geometry.json, --batch on the command line"):
        load_configs(["--text", "A mug", "--batch", "0"])
    with pytest.raises(ConfigError, match='key "out_dir" has the value ""'):
        load_configs(["--text", "A mug", "--out_dir", ""])


def test_the_table_has_the_categories_of_the_prompt_lists_once():
    known = {shape: [line for line in lines if not line.startswith("#")] for shape, lines in lists().items()}
    for shape, lines in known.items():
        for line in lines:
            assert start_shape(line)["sdf_init_shape_scale"] == TABLE[shape]["sdf_init_shape_scale"], line
    categories = [category for shape in TABLE.values() for category in shape["categories"]]
    assert len(categories) == len(set(categories))


def lists():
    folder = START_SHAPES.parent
    return {shape: (folder / f"{shape}.txt").read_text().splitlines() for shape in TABLE}


def test_variants_of_the_demo_pair_have_a_folder_each():
    sweep = load_sweep(["--text", "A red mug", "--grid", "seed=1,2"])
    assert [str(trial.folder) for trial in sweep.trials] == [
        "out/a-red-mug/seed=1/geometry",
        "out/a-red-mug/seed=2/geometry",
    ]
    assert str(sweep.folder) == "out/a-red-mug"


def test_a_list_of_prompts_runs_the_pair_with_each_start_shape():
    Path("list.txt").write_text("A car\nA donut\n")
    sweep = load_sweep(["--prompts", "list.txt", "--quick"])
    scales = [trial.configs[0].start_shape.sdf_init_shape_scale for trial in sweep.trials]
    assert scales == [(0.45, 0.45, 0.65), (0.55, 0.55, 0.55)]
    assert str(sweep.folder) == "out/list-quick"


@pytest.mark.parametrize("words", [["--text", "A red mug", "--geometry.iter", "500"], ["--quick"]])
def test_argv_of_a_trial_builds_its_configs(words):
    for trial in load_sweep(
        [*words, "--grid", "text=A car,A mug" if "--text" not in words else "seed=1,2"]
    ).trials:
        assert tuple(load_configs(trial.argv)) == trial.configs


def test_command_without_a_prompt_names_the_missing_option():
    with pytest.raises(ConfigError, match='add --text "A red mug" for the demo pair, or --config FILE'):
        read_command(["--seed", "3"])
