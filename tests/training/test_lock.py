"""Test that only one run uses an out_dir.

The tests cover double starts, locks and temporary files of killed processes, and unwritable folders.
"""

import json
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from configs.schema import parse_config
from render.image_io.atomic import atomic_path, staged_folder
from render.image_io.file_lock import try_lock
from training.lock import is_locked, lock_folder, lock_out_dirs
from training.sweep import local_executor
from training.sweep.run import SWEEP_LOCK, run_sweep
from training.sweep.trials import load_sweep

ROOT = Path(__file__).parents[2]


def config(folder):
    return parse_config({"out_dir": str(folder)}, "config")


@pytest.fixture
def holder(tmp_path):
    """Return the id of another process, which holds the lock of tmp_path / "out"."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            with lock_folder(tmp_path / "out", "x"):
                os.write(writing, b"locked")
                time.sleep(600)
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 10) == b"locked"
    os.close(reading)
    yield process
    kill(process)


def kill(process):
    with suppress(ChildProcessError):
        os.waitpid(process, os.WNOHANG)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_two_runs_one_out_dir(holder, tmp_path):
    """A second run is rejected with a one-line error that contains the process id of the first run.

    The second run can start after the first run was killed.
    """
    assert is_locked([tmp_path, tmp_path / "out"]) and not is_locked([tmp_path])
    with pytest.raises(ValueError, match=f"another run \\(process {holder} on .*writes to") as error:
        with lock_out_dirs([config(tmp_path / "out")]):
            pass
    assert "\n" not in str(error.value) and "out_dir = " in str(error.value)
    kill(holder)
    with lock_out_dirs([config(tmp_path / "out")]):
        assert is_locked([tmp_path / "out"])
    assert not is_locked([tmp_path / "out"])


def test_two_runs_one_out_dir_ends_with_2(holder, tmp_path, model_folder, caplog):
    import train

    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"out_dir": str(tmp_path / "out"), "sd_model": str(model_folder), "device": "cpu"})
    )
    before = sorted((tmp_path / "out").iterdir())
    assert train.main(["--config", str(path)]) == 2
    assert caplog.records[-1].getMessage().startswith("error: out_dir = ")
    assert sorted((tmp_path / "out").iterdir()) == before


def test_two_grids_one_out_dir(tmp_path, monkeypatch):
    """If a --grid command is started twice, the second one is rejected and the first one is not affected."""
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(json.dumps({"out_dir": "toy", "device": "cpu"}))
    sweep = load_sweep(["--config", "a.json", "--grid", "seed=1"])
    with lock_folder(sweep.folder, "first", SWEEP_LOCK.format(rank=0)):
        with pytest.raises(ValueError, match="another run"):
            run_sweep(sweep, lambda config: None)
    assert not list(tmp_path.rglob("trial.json"))


def test_a_trial_waits_for_a_run_of_a_killed_sweep(tmp_path, monkeypatch):
    """A new sweep starts a trial only after the earlier process has released the trial's folder."""
    monkeypatch.chdir(tmp_path)
    stub = ROOT / "tests" / "helpers" / "sweep_stub.py"
    monkeypatch.setattr(local_executor, "PROGRAM", stub)
    Path("a.json").write_text(json.dumps({"out_dir": "toy", "device": "cpu", "text": "done"}))
    sweep = load_sweep(["--config", "a.json", "--grid", "seed=1"])
    folder = sweep.trials[0].folder
    folder.mkdir(parents=True)
    lock, released = try_lock(folder / ".lock"), []

    def release():
        time.sleep(1)
        released.append(time.monotonic())
        lock.close()

    thread = threading.Thread(target=release)
    thread.start()
    assert run_sweep(sweep, lambda config: None) == 0
    thread.join()
    started = json.loads(Path("runs.jsonl").read_text())["at"]
    assert started > released[0]


def test_leftovers_after_kill(tmp_path):
    """Temporary files of a killed run are removed at the next start.

    Temporary files of another run in a subfolder are kept.
    """
    pid = os.fork()
    if pid == 0:
        for name in ("", "validate/shaded", "other"):
            out = tmp_path / "out" / name
            with atomic_path(out / "video.mp4") as file, staged_folder(out / "dmtet_mesh") as folder:
                file.write_text("half")
                (folder / "mesh.obj").write_text("half")
                if name == "other":
                    os.kill(os.getpid(), signal.SIGKILL)
                # Copy the temporary files. The copies remain, as if the process had been killed at this
                # point.
                shutil.copytree(folder, folder.with_name(folder.name + "x"))
                shutil.copy(file, file.with_name("." + file.name[1:-4] + "x.mp4"))
    os.waitpid(pid, 0)
    assert len(list(tmp_path.rglob(".writing_*"))) == 6
    (tmp_path / "out" / "other" / ".lock").write_text("")
    checkpoint = tmp_path / "out" / "checkpoints" / ".writing_step_000007"
    checkpoint.mkdir(parents=True)
    (tmp_path / "out" / "mine.writing_x").write_text("")
    with lock_out_dirs([config(tmp_path / "out")]):
        left = {str(path.relative_to(tmp_path / "out").parent) for path in tmp_path.rglob(".writing_*")}
        assert left == {"other"}
        assert (tmp_path / "out" / "mine.writing_x").exists()


def test_a_failed_start_leaves_no_empty_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), lock_out_dirs([config(tmp_path / "a" / "b")]):
        assert (tmp_path / "a" / "b").is_dir()
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out_dir = .*cannot write to .*file/out: Not a directory"):
        with lock_out_dirs([config(tmp_path / "file" / "out")]):
            pass
