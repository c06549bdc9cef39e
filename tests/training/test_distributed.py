"""Test runs of several processes over Gloo: equal results, a joint exit, and no lost checkpoint."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import trimesh
from multiprocess_harness import FIT, ProcessGroup, drift, fail, hold, launch, run, spoil
from test_train import ROOT, log_without_times
from toy_config import TINY

from training import distributed
from training.checkpoint import load_latest, newest_step

FAST = {**TINY, "batch": 1, "video_interval": 0, "save_interval": 0}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh") / "ball.obj"
    trimesh.creation.icosphere(subdivisions=1, radius=0.7).export(path)
    return path


def command(folder, name, model, **values):
    path = folder / f"{name}.json"
    settings = {**FAST, "sd_model": str(model), "out_dir": str(folder / name), **values}
    path.write_text(json.dumps(settings))
    return ["--config", str(path)]


def shape(folder, name, model, **values):
    start = {
        "dmtet_grid": 16,
        "learning_rate": 5e-3,
        "mesh_scale": 2.0,
        "sdf_init_shape_scale": [0.6, 0.7, 0.6],
    }
    return command(folder, name, model, **{"iter": FIT + 2, "coarse_iter": FIT + 1, **start, **values})


def paint(folder, name, model, mesh, **values):
    settings = {"mode": "appearance_modeling", "base_mesh": str(mesh), "coarse_iter": 1, **values}
    return command(folder, name, model, **settings)


def lines(path):
    return path.read_text().count("\n") if path.exists() else 0


def wait_until(processes, condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert all(member.is_alive() for member in processes.members) and time.monotonic() < until, (
            processes.text()
        )
        time.sleep(0.02)


def errors(text):
    return [line for line in text.splitlines() if line.startswith("error:")]


SHUTDOWN = """
import atexit, threading, time
from training.launch import run_and_exit
atexit.register(print, "shutdown")
threading.Thread(target=time.sleep, args=(600,)).start()
run_and_exit(lambda: print("done") or 0)
"""


def test_one_of_several_processes_ends_in_spite_of_running_threads():
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SHUTDOWN], cwd=ROOT, env=environment, capture_output=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, b"done\n"), done.stderr.decode()


def test_a_step_depends_on_its_micro_batches_and_not_on_their_ranks(model_folder, tmp_path):
    found = {}
    for world, parts in ((2, 2), (1, 4), (1, 1)):
        name = f"{world}x{parts}"
        codes, text = run(world, shape(tmp_path, name, model_folder, grad_accum=parts), tmp_path)
        assert codes == [0] * world, text
        found[name] = load_latest(tmp_path / name / "checkpoints"), log_without_times(tmp_path / name)
    whole, log = found["1x4"]
    assert [line["phase"] for line in log] == ["fit"] * FIT + ["coarse", "fine"]
    other, other_log = found["2x2"]
    for mine, theirs in zip(log, other_log, strict=True):
        # The tolerance is larger after step FIT + 1: AdamW normalises gradients, so the rounding of a
        # gradient near 0 can change a whole update and thus the loss of the next step.
        near = 1e-6 if mine["step"] <= FIT + 1 else 1e-3
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=near)
    for key, value in whole.tensors.items():
        if key.endswith("exp_avg"):
            assert (other.tensors[key] - value).norm() < 1e-3 * value.norm(), key
    assert found["1x1"][1][:FIT] == log[:FIT]
    assert found["1x1"][1][FIT]["loss"] != pytest.approx(log[FIT]["loss"], rel=1e-2)


@pytest.mark.parametrize("large", [1, 6, 100])
def test_gradients_of_all_sizes_are_averaged(large, monkeypatch):
    """Two ranks have equal gradients, so an all-reduce doubles them, and the mean equals the gradient."""
    monkeypatch.setattr(distributed, "LARGE_GRADIENT", large)
    reduced = []
    monkeypatch.setattr(
        distributed.Distributed, "_all_reduce", lambda self, tensor: reduced.append(len(tensor.mul_(2)))
    )
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((5, 2), (3,), (2, 2), (1,))]
    for number, parameter in enumerate(parameters[:3]):
        parameter.grad = torch.arange(parameter.numel()).view(parameter.shape) + 10.0 * number
    expected = [parameter.grad / 3 for parameter in parameters[:3]]
    distributed.Distributed(world_size=2).average_gradients(parameters, grad_accum=3)
    assert reduced == {1: [10, 3, 4], 6: [10, 7], 100: [17]}[large]
    for parameter, mean in zip(parameters, expected, strict=False):
        assert torch.allclose(parameter.grad, mean)


@pytest.mark.slow
def test_two_processes_move_the_vertices_of_a_mesh_like_one(model_folder, mesh, tmp_path):
    found = []
    own = {"surface": "mesh", "base_mesh": str(mesh), "learning_rate": 5e-3}
    for world, parts in ((2, 1), (1, 2)):
        steps = {"iter": 3, "coarse_iter": 2, "checkpoint_interval": 1, "grad_accum": parts}
        argv = command(tmp_path, f"{world}x{parts}", model_folder, **own, **steps)
        codes, text = run(world, argv, tmp_path)
        assert codes == [0] * world, text
        found.append(load_latest(tmp_path / f"{world}x{parts}/checkpoints").tensors["scene.surface.change"])
    assert found[0].abs().max() > 5e-3
    assert (found[0] - found[1]).abs().max() < 1e-5


OFTEN = {"iter": 21, "checkpoint_interval": 3}


@pytest.fixture(scope="module")
def uninterrupted(model_folder, mesh, tmp_path_factory):
    """Return the out_dir of a finished run of two processes with the settings OFTEN."""
    folder = tmp_path_factory.mktemp("whole")
    codes, text = run(2, paint(folder, "run", model_folder, mesh, **OFTEN), folder)
    assert codes == [0, 0], text
    return folder / "run"


def assert_same_state_and_log(first, second):
    states = load_latest(first / "checkpoints"), load_latest(second / "checkpoints")
    assert states[0].step == states[1].step == OFTEN["iter"]
    assert states[0].tensors.keys() == states[1].tensors.keys()
    assert all(torch.equal(value, states[1].tensors[name]) for name, value in states[0].tensors.items())
    assert log_without_times(first) == log_without_times(second)


def test_two_processes_stop_together_and_resume_bit_for_bit(uninterrupted, model_folder, mesh, tmp_path):
    argv = paint(tmp_path, "parts", model_folder, mesh, **OFTEN)
    with ProcessGroup(2, argv, tmp_path) as processes:
        wait_until(processes, lambda: lines(tmp_path / "parts/log.jsonl") >= 3)
        os.kill(processes.members[1].pid, signal.SIGTERM)
        assert processes.wait() == [128 + signal.SIGTERM] * 2, processes.text()
        assert processes.text().count("stopped after step") == 1 and not errors(processes.text())
    stopped = load_latest(tmp_path / "parts/checkpoints").step
    assert stopped == lines(tmp_path / "parts/log.jsonl") < OFTEN["iter"]
    codes, text = run(2, argv, tmp_path)
    assert codes == [0, 0] and f"resuming after step {stopped}" in text and "a step now has" not in text
    assert_same_state_and_log(uninterrupted, tmp_path / "parts")

    codes, text = run(1, [*argv, "--iter", "23", "--grad_accum", "3"], tmp_path)
    assert codes == [0] and "2 × 1, this run has 1 × 3: a step now has 3 views instead of 2" in text


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_error_of_one_rank_ends_all_with_one_line(rank, model_folder, mesh, tmp_path):
    argv = paint(tmp_path, "run", model_folder, mesh, iter=9, checkpoint_interval=2)
    codes, text = run(2, argv, tmp_path, fail(rank, 4))
    assert codes[rank] == 2 and codes[1 - rank] == 1
    assert len(errors(text)) == 1 and "this rank fails" in errors(text)[0] and "Traceback" not in text
    assert load_latest(tmp_path / "run/checkpoints").step == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_other_with_one_line(rank, model_folder, mesh, tmp_path):
    argv = paint(tmp_path, "run", model_folder, mesh, iter=9, checkpoint_interval=2)
    with ProcessGroup(2, argv, tmp_path, hold(rank, 4)) as processes:
        wait_until(processes, lambda: newest_step(tmp_path / "run/checkpoints") == 2)
        processes.members[rank].kill()
        codes = processes.wait()
        assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 1
        assert len(errors(processes.text())) == 1 and "another process" in errors(processes.text())[0], (
            processes.text()
        )
        assert "Traceback" not in processes.text()
    assert load_latest(tmp_path / "run/checkpoints").step == 2


def test_ranks_that_drift_apart_stop_before_the_checkpoint(model_folder, mesh, tmp_path):
    argv = paint(tmp_path, "run", model_folder, mesh, iter=9, checkpoint_interval=2)
    codes, text = run(2, argv, tmp_path, drift(1, 3))
    assert codes == [1, 1] and text.count("the weights of rank 1 of 2 differ") == 1
    assert load_latest(tmp_path / "run/checkpoints").step == 2


def test_bad_gradient_of_one_rank_skips_the_step_on_all(model_folder, mesh, tmp_path):
    argv = paint(tmp_path, "run", model_folder, mesh, iter=5, checkpoint_interval=1)
    codes, text = run(2, argv, tmp_path, spoil(1, 3))
    # The ranks compare their weights before each checkpoint, so exit code 0 means that the weights are equal.
    assert codes == [0, 0] and text.count("step 3: ") == 1 and "the optimizer step was skipped" in text, text
    saved = load_latest(tmp_path / "run/checkpoints").tensors
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert {tensor.item() for name, tensor in saved.items() if name.endswith(".step")} == {4}


def test_bad_config_is_reported_once(model_folder, mesh, tmp_path):
    argv = paint(tmp_path, "run", model_folder, mesh, iter=9)
    codes, text = run(2, [*argv, "--envmap", "nowhere.hdr"], tmp_path)
    assert codes == [2, 2] and text.count("\n") == 1 == len(errors(text))
    codes, text = run(2, [*argv, "--sd_model", "no/where/at/all"], tmp_path)
    assert 2 in codes and 0 not in codes and text.count("\n") == 1 == len(errors(text))


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_any_moment_lose_less_than_an_interval(kills, uninterrupted, model_folder, mesh, tmp_path):
    interval, chance = OFTEN["checkpoint_interval"], random.Random(0)
    argv, log = paint(tmp_path, "parts", model_folder, mesh, **OFTEN), tmp_path / "parts/log.jsonl"
    before = 0
    for _ in range(kills):
        with ProcessGroup(2, argv, tmp_path) as processes:
            while any(member.is_alive() for member in processes.members) and lines(log) <= before:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.4))
            for member in chance.sample(processes.members, 2):
                member.kill()
                time.sleep(chance.choice([0, 0.01]))
            codes = processes.wait()
        kept = load_latest(tmp_path / "parts/checkpoints")
        assert (kept.step if kept else 0) >= max(before, lines(log) - interval), (codes, processes.text())
        before = kept.step if kept else 0
        if before == OFTEN["iter"]:
            break
    assert run(2, argv, tmp_path)[0] == [0, 0]
    assert_same_state_and_log(uninterrupted, tmp_path / "parts")


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_the_launcher_restarts_a_killed_worker_and_ends_all_on_sigterm(model_folder, mesh, tmp_path):
    argv = paint(tmp_path, "run", model_folder, mesh, iter=5000, checkpoint_interval=4)
    words = ["--nproc_per_node=2", "--max_restarts=1", "--monitor_interval=0.1", "train.py", *argv]
    log = tmp_path / "run/log.jsonl"
    with ProcessGroup(1, words, tmp_path, main=launch) as processes:
        (launcher,) = processes.members

        def until(done, seconds=150):
            end = time.monotonic() + seconds
            while not done():
                assert launcher.is_alive() and time.monotonic() < end, processes.text()
                time.sleep(0.02)

        until(lambda: lines(log) > 5)
        os.kill(children(launcher.pid)[-1], signal.SIGKILL)
        until(lambda: "resuming after step" in processes.text())
        reached = lines(log)
        resumed = int(processes.text().partition("resuming after step ")[2].split()[0])
        # The lines of the killed processes remain in the log until the loop starts, so wait for later lines.
        until(lambda: lines(log) > reached + 2)
        launcher.terminate()
        assert processes.wait(60) != [0]
    text = processes.text()
    assert len(errors(text)) == 1 and "stopped after step" in text, text
    assert load_latest(tmp_path / "run/checkpoints").step == lines(log) > resumed >= 4
    assert [line["step"] for line in log_without_times(tmp_path / "run")] == [*range(1, lines(log) + 1)]
