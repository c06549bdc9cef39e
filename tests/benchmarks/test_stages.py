"""Test the stage benchmark: times exclude nested stages, and the sphere has the requested face count."""

import math

import pytest
import torch

from benchmarks.stages import Stopwatch, sphere, table
from render.mesh import face_cross
from render.raster.select import choose_rasteriser
from render.texturing.uv import uv_fault


def test_stage_time_excludes_nested_stages():
    watch = Stopwatch(torch.device("cpu"))
    ticks = iter(range(100))
    watch.now = lambda: float(next(ticks))

    class Work:
        def inner(self):
            return 7

        def outer(self):
            return self.inner() + self.inner()

    with watch.watching([("inner", Work, "inner"), ("outer", Work, "outer")]):
        assert Work().outer() == 14
    # The clock advances by one tick at each reading. The outer stage lasts from tick 0 to 5. The inner stage
    # lasts from tick 1 to 2, and again from 3 to 4.
    assert watch.seconds == {"inner": [1.0, 1.0], "outer": [3.0]}
    assert Work().outer() == 14 and len(watch.seconds["inner"]) == 2


def test_the_sphere_is_a_sphere_with_its_faces_outwards_and_a_uv_to_bake_into():
    mesh = sphere(20_000)
    assert len(mesh.faces) == pytest.approx(20_000, rel=0.02)
    cross = face_cross(mesh.v_pos, mesh.faces)
    assert cross.norm(dim=-1).sum() / 2 == pytest.approx(4 * math.pi * 0.49 * math.cos(0.05), rel=2e-3)
    assert ((cross * mesh.v_pos[mesh.faces[:, 0].long()]).sum(-1) > 0).all()
    assert uv_fault(mesh, choose_rasteriser(torch.device("cpu"), "reference")) is None


def test_table_has_a_row_per_stage_and_the_lower_bound():
    phase = {"total_ms": 5.0, "peak_gb": None, "floor_ms": 3.0, "stages_ms": {"UNet": 2.5}}
    lines = table({"phases": {"fit": {"total_ms": 1.0}, "fine": phase}}).splitlines()
    assert lines[0] == "| ms a step | fine |"
    assert "| UNet | 2.50 |" in lines and "| beyond the floor | 2.00 |" in lines
