"""Test the Ray executor: GPU shares, the error if Ray is not installed, and a sweep with a real Ray."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from configs.errors import ConfigError
from training.sweep.ray_executor import share_of_gpu


@pytest.mark.parametrize(
    ("gpus", "jobs", "share"),
    [(0, 4, 0.0), (2, 1, 1.0), (2, 2, 1.0), (2, 3, 0.5), (2, 16, 0.125), (1, 3, 1 / 3)],
)
def test_gpu_share_allows_all_jobs_at_once(gpus, jobs, share):
    assert share_of_gpu(gpus, jobs) == share
    assert not gpus or gpus * int(1 / share) >= jobs


def test_missing_package_error_names_the_remedy(stub, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install ray"):
        stub.run("--grid", "seed=1", "--executor", "ray")
    assert stub.runs() == []


def test_ray_and_ranks_exclude_each_other(stub, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        stub.run("--grid", "seed=1", "--executor", "ray")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the optional package ray")
def test_a_sweep_on_ray(stub, monkeypatch):
    import ray

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]), prepend=os.pathsep)
    # Each worker process imports the program again, so the stub must be installed inside the task.
    from training.sweep import local_executor, ray_executor

    program, run_trial = local_executor.PROGRAM, ray_executor.run_trial

    def stubbed(trial, folder, threads):
        from training.sweep import local_executor

        local_executor.PROGRAM = program
        return run_trial(trial, folder, threads)

    monkeypatch.setattr(ray_executor, "run_trial", stubbed)
    Path("p.txt").write_text("done\nbroken\ncrash\n")
    try:
        assert stub.run("--prompts", "p.txt", "--executor", "ray") == 1
    finally:
        ray.shutdown()
    assert stub.states() == {"done": "done", "broken": "failed", "crash": "failed"}
    tries = [run["out_dir"] for run in stub.runs()]
    # A trial is not retried after an error that the user can fix. A trial is retried twice if its process
    # died.
    assert [tries.count(f"toy/{name}") for name in ("done", "broken", "crash")] == [1, 1, 3]
