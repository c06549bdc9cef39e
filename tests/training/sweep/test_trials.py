"""Test the trials of a command: their folders and arguments, and when a trial counts as finished."""

import json
import shlex
from pathlib import Path

import pytest

from configs.cli import load_configs
from configs.errors import ConfigError
from training.sweep.progress import next_commands
from training.sweep.trials import DONE, FAILED, Record, is_done, load_sweep, read_record, write_record

NASTY = ["-1", "--help", "a, b", 'say "a"', "  x  y", "null", "[1]", "été", "a=b", "1e5", "$HOME `ls`"]


def trials(pair, *words):
    return load_sweep([*pair, *words]).trials


def finish(trial):
    for config in trial.configs:
        config.run.mesh_path.parent.mkdir(parents=True, exist_ok=True)
        config.run.mesh_path.write_text("v 0 0 0\n")
    write_record(trial, Record(DONE, None, 1.0))


def test_a_command_without_grid_is_no_sweep(pair):
    assert load_sweep(pair) is None


def test_every_trial_has_its_folders_and_the_second_config_reads_its_own_mesh(pair):
    found = trials(pair, "--grid", "seed=1,2", "batch=3,4")
    assert [trial.name for trial in found] == [
        f"seed={seed}_batch={batch}" for seed in (1, 2) for batch in (3, 4)
    ]
    geometry, appearance = found[2].configs
    assert str(geometry.run.output_folder) == "out/toy/seed=2_batch=3"
    assert str(appearance.run.output_folder) == "out/toy/seed=2_batch=3_appearance"
    assert appearance.run.base_mesh == "out/toy/seed=2_batch=3/dmtet_mesh/mesh.obj"
    assert [(config.run.seed, config.run.batch) for config in found[2].configs] == [(2, 3)] * 2


def test_out_dir_applies_to_all_configs(pair):
    sweep = load_sweep([*pair, "--grid", "seed=1", "--out_dir", "X/"])
    assert str(sweep.folder) == "out/X"
    folders = [str(config.run.output_folder) for config in sweep.trials[0].configs]
    assert folders == ["out/X/seed=1", "out/X/seed=1_appearance"]


@pytest.mark.parametrize("text", NASTY)
def test_argv_of_a_trial_gives_the_same_configs(pair, text):
    Path("prompts.txt").write_text(text + "\n")
    options = ["--negative_text", "low, quality", "--learning_rate", "1e-3", "--envmap", "null"]
    grid = ["--grid", "sdf_init_shape_scale=[.5,.6,.7],[-0.5,1,1]"]
    with pytest.raises(ConfigError, match=r"-0\.5"):
        trials(pair, "--prompts", "prompts.txt", *grid)
    for trial in trials(pair, "--prompts", "prompts.txt", *options, "--grid", "translation_y=-.5,0"):
        assert tuple(load_configs(trial.argv)) == trial.configs
        assert trial.configs[0].guidance.text == " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--grid", "seed=1,x"], ['"seed"', '"x"', "an integer"]),
        (["--grid", "batch=0,1"], ['"batch"', "0", ">= 1"]),
        (["--grid", "sed=1"], ['"sed"', '"seed"']),
        (["--grid", "seed=1", "--seed", "2"], ["--seed", "--grid"]),
        (["--grid", "coarse_iter=5", "iter=3,9"], ['"coarse_iter"', "5", "iter"]),
        (["--prompts", "missing.txt"], ["missing.txt", "No such file"]),
        (["--prompts", "p.txt", "--text", "b"], ["--text", "--prompts"]),
        (["--grid", "text=a", "--prompts", "p.txt"], ["text", "--prompts"]),
        (["--jobs", "2"], ["--jobs", "--grid"]),
        (["--grid", "seed=1", "--jobs", "0"], ["--jobs", '"0"', ">= 1"]),
        (["--grid", "seed=1", "--executor", "x"], ["--executor", "'ray'"]),
        (["--grid"], ["--grid"]),
    ],
)
def test_error_in_any_config_stops_the_command_before_the_first_run(pair, words, expected):
    Path("p.txt").write_text("A mug\n")
    with pytest.raises(ConfigError) as error:
        trials(pair, *words)
    message = str(error.value)
    assert "\n" not in message
    assert [part for part in expected if part not in message] == []
    assert not Path("out").exists()


def test_trials_with_equal_folders_are_rejected(pair):
    config = json.loads(Path("appearance.json").read_text())
    Path("appearance.json").write_text(json.dumps({**config, "out_dir": "toy-b"}))
    Path("p.txt").write_text("a\na b\n")
    with pytest.raises(ConfigError, match=r'"a" and "a-b" would both write to out/toy/a-b;'):
        trials(pair, "--prompts", "p.txt")


def test_dry_run_prints_every_trial_and_leaves(pair, capsys):
    with pytest.raises(SystemExit) as leave:
        trials(pair, "--grid", "seed=1,2", "--dry-run")
    assert leave.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert [trial["trial"] for trial in printed] == ["seed=1", "seed=2"]
    assert [config["seed"] for trial in printed for config in trial["configs"]] == [1, 1, 2, 2]
    assert not Path("out").exists()


def test_a_trial_is_done_with_these_settings_and_these_files_only(pair):
    (trial,) = trials(pair, "--grid", "seed=1")
    assert not is_done(trial)
    finish(trial)
    assert is_done(trial)
    assert not is_done(trials(pair, "--grid", "seed=1", "--guidance_weight", "3")[0])
    trial.configs[1].run.mesh_path.unlink()
    assert not is_done(trial)


def test_changed_base_mesh_invalidates_a_trial(pair):
    Path("mesh.obj").write_text("v 0 0 0\n")
    words = ["--config", "appearance.json", "--base_mesh", "mesh.obj", "--grid", "seed=1"]
    (trial,) = load_sweep(words).trials
    finish(trial)
    assert is_done(trial)
    Path("mesh.obj").write_text("v 0 0 1\n")
    assert not is_done(trial)


def test_trial_record_without_a_new_key_stays_done(pair):
    (trial,) = trials(pair, "--grid", "seed=1")
    finish(trial)
    record = trial.folder / "trial.json"
    known = json.loads(record.read_text())
    for values in known["settings"]:
        del values["unwrap"]
    record.write_text(json.dumps(known))
    assert is_done(trial)
    assert not is_done(trials(pair, "--grid", "seed=1", "--unwrap", "xatlas")[0])


def test_a_record_is_read_back_and_a_damaged_one_is_ignored(pair, caplog):
    (trial,) = trials(pair, "--grid", "seed=1")
    write_record(trial, Record(FAILED, "no surface", 2.5))
    assert read_record(trial) == Record(FAILED, "no surface", 2.5)
    (trial.folder / "trial.json").write_text('{"state": ')
    assert read_record(trial) == Record()
    assert "damaged" in caplog.text


def test_a_finished_shape_is_continued_by_painting_it(pair):
    trial = load_sweep(["--config", "geometry.json", "--grid", "seed=1,2", "--text", "A mug"]).trials[0]
    commands = next_commands(trial)
    painting = shlex.split(commands["Paint it"])[2:]
    trial.configs[0].run.mesh_path.parent.mkdir(parents=True)
    trial.configs[0].run.mesh_path.touch()
    (painted,) = load_configs(painting)
    assert painted.run.mode == "appearance_modeling" and painted.guidance.text == "A mug"
    assert painted.run.base_mesh == str(trial.configs[0].run.mesh_path)
    longer = shlex.split(commands["Continue its training"])
    assert longer[-2:] == ["--iter", str(2 * trial.configs[0].schedule.iter)]


def test_a_painted_result_is_continued_by_a_larger_export(pair):
    trial = load_sweep([*pair, "--grid", "seed=1,2"]).trials[0]
    command = next_commands(trial)["Export it with larger textures"]
    own = "out/toy/seed=1_appearance/config.json"
    assert command == f"python3 train.py --config {own} --export-only --texture_res 2048 2048"


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "null", "[" * 100_000, '{"state": 3}', '{"state": "done", "settings": 5}', "\ufeff{}"]
    + [json.dumps({"state": "failed", "error": 7, "seconds": "long"})],
    ids=lambda content: content[:20],
)
def test_damaged_trial_state_files(pair, content):
    """A damaged trial.json raises no error. The trial counts as not done and can be displayed."""
    (trial,) = trials(pair, "--grid", "seed=1")
    finish(trial)
    (trial.folder / "trial.json").write_text(content, encoding="utf-8")
    assert not is_done(trial)
    record = read_record(trial)
    assert record.error is None and record.seconds in (0.0, 1.0)
