"""The cells of a command: where they write, which words run them alone, and when one counts as done."""

import json
from pathlib import Path

import pytest

from configs.command_line import load_configs
from configs.errors import ConfigError
from configs.fleet.cells import DONE, FAILED, Record, is_done, load_fleet, read_record, write_record

NASTY = ["-1", "--help", "a, b", 'say "a"', "  x  y", "null", "[1]", "été", "a=b", "1e5", "$HOME `ls`"]


def cells(pair, *words):
    return load_fleet([*pair, *words]).cells


def finish(cell):
    for config in cell.configs:
        config.run.mesh_path.parent.mkdir(parents=True, exist_ok=True)
        config.run.mesh_path.write_text("v 0 0 0\n")
    write_record(cell, Record(DONE, None, 1.0))


def test_one_result_is_no_fleet(pair):
    assert load_fleet(pair) is None


def test_every_cell_has_its_folders_and_the_second_config_reads_its_own_mesh(pair):
    found = cells(pair, "--grid", "seed=1,2", "batch=3,4")
    assert [cell.name for cell in found] == [
        f"seed={seed}_batch={batch}" for seed in (1, 2) for batch in (3, 4)
    ]
    geometry, appearance = found[2].configs
    assert str(geometry.run.output_folder) == "out/toy/seed=2_batch=3"
    assert str(appearance.run.output_folder) == "out/toy/seed=2_batch=3_appearance"
    assert appearance.run.base_mesh == "out/toy/seed=2_batch=3/dmtet_mesh/mesh.obj"
    assert [(config.run.seed, config.run.batch) for config in found[2].configs] == [(2, 3)] * 2


def test_out_dir_moves_them_all(pair):
    fleet = load_fleet([*pair, "--grid", "seed=1", "--out_dir", "X/"])
    assert str(fleet.folder) == "out/X"
    folders = [str(config.run.output_folder) for config in fleet.cells[0].configs]
    assert folders == ["out/X/seed=1", "out/X/seed=1_appearance"]


@pytest.mark.parametrize("text", NASTY)
def test_the_words_of_a_cell_give_the_same_configs(pair, text):
    Path("prompts.txt").write_text(text + "\n")
    options = ["--negative_text", "low, quality", "--learning_rate", "1e-3", "--envmap", "null"]
    grid = ["--grid", "sdf_init_shape_scale=[.5,.6,.7],[-0.5,1,1]"]
    with pytest.raises(ConfigError, match=r"-0\.5"):
        cells(pair, "--prompts", "prompts.txt", *grid)
    for cell in cells(pair, "--prompts", "prompts.txt", *options, "--grid", "translation_y=-.5,0"):
        assert tuple(load_configs(cell.words)) == cell.configs
        assert cell.configs[0].guidance.text == " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "told"),
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
        (["--grid", "seed=1", "--engine", "x"], ["--engine", "'ray'"]),
        (["--grid"], ["--grid"]),
    ],
)
def test_a_mistake_anywhere_is_one_line_before_anything_runs(pair, words, told):
    Path("p.txt").write_text("A mug\n")
    with pytest.raises(ConfigError) as error:
        cells(pair, *words)
    message = str(error.value)
    assert "\n" not in message
    assert [part for part in told if part not in message] == []
    assert not Path("out").exists()


def test_cells_whose_folders_would_meet_are_refused(pair):
    config = json.loads(Path("appearance.json").read_text())
    Path("appearance.json").write_text(json.dumps({**config, "out_dir": "toy-b"}))
    Path("p.txt").write_text("a\na b\n")
    with pytest.raises(ConfigError, match=r'"a" and "a-b" would both write to out/toy/a-b;'):
        cells(pair, "--prompts", "p.txt")


def test_dry_run_prints_every_cell_and_leaves(pair, capsys):
    with pytest.raises(SystemExit) as leave:
        cells(pair, "--grid", "seed=1,2", "--dry-run")
    assert leave.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert [cell["cell"] for cell in printed] == ["seed=1", "seed=2"]
    assert [config["seed"] for cell in printed for config in cell["configs"]] == [1, 1, 2, 2]
    assert not Path("out").exists()


def test_a_cell_is_done_with_these_settings_and_these_files_only(pair):
    (cell,) = cells(pair, "--grid", "seed=1")
    assert not is_done(cell)
    finish(cell)
    assert is_done(cell)
    assert not is_done(cells(pair, "--grid", "seed=1", "--guidance_weight", "3")[0])
    cell.configs[1].run.mesh_path.unlink()
    assert not is_done(cell)


def test_another_content_of_the_mesh_that_is_painted_undoes_a_cell(pair):
    Path("mesh.obj").write_text("v 0 0 0\n")
    words = ["--config", "appearance.json", "--base_mesh", "mesh.obj", "--grid", "seed=1"]
    (cell,) = load_fleet(words).cells
    finish(cell)
    assert is_done(cell)
    Path("mesh.obj").write_text("v 0 0 1\n")
    assert not is_done(cell)


def test_a_cell_from_before_a_key_was_there_stays_done_at_its_default(pair):
    (cell,) = cells(pair, "--grid", "seed=1")
    finish(cell)
    record = cell.folder / "cell.json"
    known = json.loads(record.read_text())
    for values in known["settings"]:
        del values["unwrap"]
    record.write_text(json.dumps(known))
    assert is_done(cell)
    assert not is_done(cells(pair, "--grid", "seed=1", "--unwrap", "xatlas")[0])


def test_a_record_is_read_back_and_a_damaged_one_is_passed_over(pair, caplog):
    (cell,) = cells(pair, "--grid", "seed=1")
    write_record(cell, Record(FAILED, "no surface", 2.5))
    assert read_record(cell) == Record(FAILED, "no surface", 2.5)
    (cell.folder / "cell.json").write_text('{"state": ')
    assert read_record(cell) == Record()
    assert "damaged" in caplog.text
