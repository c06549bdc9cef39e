"""A folder with a pair of configs, and train.py replaced by a stand-in that starts at once."""

import json
from pathlib import Path

import pytest

from configs.fleet import process
from configs.fleet.cells import load_fleet
from configs.fleet.run import run_fleet


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
    """Fleets whose cells are runs of the stand-in."""

    def __init__(self, words):
        self.words = words

    def fleet(self, *words):
        return load_fleet([*self.words, *words])

    def run(self, *words, check=make_folder):
        """The exit code."""
        return run_fleet(self.fleet(*words), check)

    def states(self):
        """The state of each cell, by name."""
        found = {path.parent.name: json.loads(path.read_text()) for path in Path("out").rglob("cell.json")}
        return {name: record["state"] for name, record in found.items()}

    def runs(self):
        """What the stand-ins noted of themselves, in the order of their starts."""
        log = Path("runs.jsonl")
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def stub(pair, monkeypatch):
    monkeypatch.setattr(process, "PROGRAM", Path(__file__).with_name("fleet_stub.py"))
    return Stubbed(pair)
