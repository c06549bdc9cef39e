"""Provide a folder with a pair of configs, and a stub for train.py that starts quickly."""

import json
from pathlib import Path

import pytest

from training.sweep import local_executor
from training.sweep.run import run_sweep
from training.sweep.trials import load_sweep


def make_folder(config):
    config.run.output_folder.mkdir(parents=True, exist_ok=True)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Create geometry.json and appearance.json in the current directory. Return the arguments for them."""
    monkeypatch.chdir(tmp_path)
    geometry = {"out_dir": "toy", "device": "cpu"}
    appearance = {"mode": "appearance_modeling", "base_mesh": "out/toy/dmtet_mesh/mesh.obj", "device": "cpu"}
    Path("geometry.json").write_text(json.dumps(geometry | {"text": "done"}))
    Path("appearance.json").write_text(json.dumps(appearance | {"text": "done", "out_dir": "toy_appearance"}))
    return ["--config", "geometry.json", "appearance.json"]


class Stubbed:
    """Sweeps whose trials run a stub instead of train.py."""

    def __init__(self, words):
        self.words = words

    def sweep(self, *words):
        return load_sweep([*self.words, *words])

    def run(self, *words, check=make_folder):
        """Run the sweep and return its exit code."""
        return run_sweep(self.sweep(*words), check)

    def states(self):
        """Return {trial name: state}."""
        found = {path.parent.name: json.loads(path.read_text()) for path in Path("out").rglob("trial.json")}
        return {name: record["state"] for name, record in found.items()}

    def runs(self):
        """Return the records that the stubs wrote, in the order in which the stubs started."""
        log = Path("runs.jsonl")
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def stub(pair, monkeypatch):
    monkeypatch.setattr(local_executor, "PROGRAM", Path(__file__).parents[2] / "helpers" / "sweep_stub.py")
    return Stubbed(pair)
