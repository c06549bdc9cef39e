"""Test the rasteriser benchmark at toy size: its tables, and its gradient measure for a wrong gradient."""

import json

import pytest
import torch

from benchmarks import raster
from render.raster.reference import ReferenceRasteriser

CPU = torch.device("cpu")


class Hard(ReferenceRasteriser):
    """A rasteriser whose antialiasing returns half of the correct gradient."""

    def antialias(self, colour, rast, clip, faces):
        smooth = super().antialias(colour, rast, clip, faces)
        return (smooth + smooth.detach()) / 2


def test_the_share_is_whole_for_the_edge_rule_and_half_for_half_of_it():
    found = raster.outline_shares({"reference": ReferenceRasteriser(), "half": Hard()}, 32, 48, CPU, 4, 2)
    assert found["reference"]["share"] == pytest.approx(1, abs=0.03)
    assert found["reference"]["error"] < 0.06
    assert found["half"]["share"] == pytest.approx(found["reference"]["share"] / 2, rel=1e-3)
    assert found["half"]["error"] == pytest.approx(0.5, abs=0.05)


def test_the_command_prints_both_tables(tmp_path, capsys):
    words = "--faces 300 --grids 16 --size 24 --batch 2 --steps 2 --rasterisers reference"
    raster.main([*words.split(), "--json", str(tmp_path / "out.json")])
    out = capsys.readouterr().out
    assert "| reference | 306 |" in out and "| reference | 16 |" in out
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["times"][0]["ms"].keys() == {*raster.PARTS, "whole"}
    assert min(record["times"][0]["ms"].values()) > 0
