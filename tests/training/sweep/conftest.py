"""A folder with a pair of configs, and train.py replaced by a stand-in that starts at once."""

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
    """The current directory has geometry.json and appearance.json; the words that name them."""
    monkeypatch.chdir(tmp_path)
    geometry = {"out_dir": "toy", "device": "cpu"}
    appearance = {"mode": "appearance_modeling", "base_mesh": "out/toy/dmtet_mesh/mesh.obj", "device": "cpu"}
    Path("geometry.json").write_text(json.dumps(geometry | {"text": "done"}))
    Path("appearance.json").write_text(json.dumps(appearance | {"text": "done", "out_dir": "toy_appearance"}))
    return ["--config", "geometry.json", "appearance.json"]


class Stubbed:
    """Fleets whose trials are runs of the stand-in."""

    def __init__(self, words):
        self.words = words

    def sweep(self, *words):
        return load_sweep([*self.words, *words])

    def run(self, *words, check=make_folder):
        """The exit code."""
        return run_sweep(self.sweep(*words), check)

    def states(self):
        """The state of each trial, by name."""
        found = {path.parent.name: json.loads(path.read_text()) for path in Path("out").rglob("trial.json")}
        return {name: record["state"] for name, record in found.items()}

    def runs(self):
        """What the stand-ins noted of themselves, in the order of their starts."""
        log = Path("runs.jsonl")
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def stub(pair, monkeypatch):
    monkeypatch.setattr(local_executor, "PROGRAM", Path(__file__).parents[2] / "helpers" / "sweep_stub.py")
    return Stubbed(pair)
