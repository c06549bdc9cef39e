"""Test real runs of train.py: a grid on an existing mesh, and two-stage trials, one of which fails.

The processes of the trials are forked. test_sweep_run.py tests how a sweep starts new processes.
"""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import trimesh
from multiprocess_harness import FIT, ForkedTrial
from PIL import Image
from reduced_work import shorten_fit
from toy_config import TINY

import train
from training.sweep import local_executor


@pytest.fixture
def configs(model_folder, tmp_path, monkeypatch):
    """Create geometry.json, appearance.json and cube.obj in the current directory."""
    monkeypatch.chdir(tmp_path)
    shorten_fit(FIT, monkeypatch.setattr)
    forked = SimpleNamespace(Popen=ForkedTrial, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(local_executor, "subprocess", forked)
    tiny = {**TINY, "batch": 1, "save_interval": 0, "sd_model": str(model_folder)}
    shape = {
        "out_dir": "toy",
        "iter": FIT + 2,
        "coarse_iter": FIT + 1,
        "dmtet_grid": 16,
        "mesh_scale": 2.0,
        "learning_rate": 5e-3,
    }
    paint = {"mode": "appearance_modeling", "out_dir": "toy_appearance", "iter": 2, "coarse_iter": 1}
    Path("geometry.json").write_text(json.dumps(tiny | shape))
    base = {"base_mesh": "out/toy/dmtet_mesh/mesh.obj"}
    Path("appearance.json").write_text(json.dumps(tiny | paint | base))
    trimesh.creation.box((1, 1, 1)).export("cube.obj")
    return tmp_path


def states():
    found = {path.parent.name: json.loads(path.read_text()) for path in Path("out").rglob("trial.json")}
    return {name: record["state"] for name, record in found.items()}


def test_trials_run_two_at_a_time_and_are_not_repeated(configs, caplog):
    command = ["--config", "appearance.json", "--base_mesh", "cube.obj", "--out_dir", "cubes", "--jobs", "2"]
    command += ["--grid", "seed=1,2", "kd_max=[.2,.2,.2]"]
    assert train.main(command) == 0
    names = [f"seed={seed}_kd_max=0.2,0.2,0.2" for seed in (1, 2)]
    assert states() == dict.fromkeys(names, "done")
    for name in names:
        with Image.open(f"out/cubes/{name}/dmtet_mesh/texture_kd.png") as texture:
            # kd_max is 0.2, which is 124 in sRGB. Without this limit, initial values would be near the middle
            # of [0, 1].
            assert max(high for _, high in texture.getextrema()) <= 125
    seeds = {Path(f"out/cubes/{name}/dmtet_mesh/texture_kd.png").read_bytes() for name in names}
    assert len(seeds) == 2
    page = Path("out/cubes/index.html").read_text()
    assert "2 results: 2 done" in page and page.count("data:image/jpeg") == 2
    caplog.set_level("INFO")
    times = {path: path.stat().st_mtime_ns for path in Path("out").rglob("mesh.obj")}
    assert train.main(command) == 0
    assert "2 of them done already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_chains_of_prompts_paint_their_own_mesh_and_a_damaged_input_is_rejected_at_startup(configs, caplog):
    Path("p.txt").write_text("# one\na car\n")
    command = ["--config", "geometry.json", "appearance.json", "--prompts", "p.txt", "--jobs", "2"]
    Path("broken.npz").write_text("no tetrahedra")
    assert train.main([*command, "--grid", "tet_grid_file=null,broken.npz"]) == 2
    assert "a-car_tet_grid_file=broken.npz: tet_grid_file broken.npz" in caplog.records[-1].getMessage()
    assert train.main(command) == 0
    assert states() == {"a-car": "done"}
    shape, painted = (
        trimesh.load(f"out/toy/{name}/dmtet_mesh/mesh.obj", force="mesh", process=False)
        for name in ("a-car", "a-car_appearance")
    )
    assert sorted(map(tuple, shape.vertices.round(4))) == sorted(map(tuple, painted.vertices.round(4)))


def test_a_stopped_run_resumes_after_its_checkpoint(configs):
    arguments = ["--config", "appearance.json", "--base_mesh", "cube.obj", "--out_dir", "k", "--iter", "9999"]
    arguments += ["--checkpoint_interval", "0", "--grid", "seed=1"]
    log = Path("out/k/seed=1/log.jsonl")

    def stop():
        while not log.exists() or log.read_text().count("\n") < 4:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    assert train.main(arguments) == 143
    thread.join()
    assert states() == {"seed=1": "stopped"}
    steps = log.read_text().count("\n")
    arguments[arguments.index("9999")] = str(steps + 1)
    assert train.main(arguments) == 0
    assert states() == {"seed=1": "done"}
    console = Path("out/k/seed=1/console.log").read_text()
    assert f"stopped after step {steps}, saved" in console and f"resuming after step {steps}" in console
