"""What a checkpoint must agree on with the run that goes on from it."""

import os
from pathlib import Path

from configs.cli import load_configs
from training import resume
from training.checkpoint import sha256_of_file
from training.resume import settings

ROOT = Path(__file__).parents[2]


def test_another_mesh_of_the_same_name_and_size_is_another_run(tmp_path, monkeypatch):
    mesh = tmp_path / "mesh.obj"
    mesh.write_text("v 0 0 1\n")
    config = str(ROOT / "configs" / "pineapple_demo_appearance.json")
    config = load_configs(["--config", config, "--base_mesh", str(mesh)])[0]
    reads = []
    monkeypatch.setattr(resume, "sha256_of_file", lambda path: reads.append(path) or sha256_of_file(path))
    first = settings(config)
    # Every checkpoint asks, and large files take a while.
    assert settings(config) == first and reads == [mesh]
    time = mesh.stat().st_mtime_ns
    mesh.write_text("v 0 0 2\n")
    os.utime(mesh, ns=(time, time + 1_000_000))
    changed = settings(config)
    assert {key for key in first if first[key] != changed[key]} == {"content of base_mesh"}
