"""Test the stage benchmark: times exclude nested stages, and the sphere has the requested face count."""

import math

import pytest
import torch
from reduced_work import shorten_fit
from toy_config import TINY

from benchmarks.stages import SteppedRun, Stopwatch, phases_of, sphere, stages, table
from configs.schema import parse_config
from render.mesh import face_cross
from render.raster.select import choose_rasteriser
from render.texturing.uv import uv_fault
from sd.stable_diffusion import StableDiffusion


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


def test_stages_of_vsd_and_of_the_surface_terms_are_timed(model_folder, tmp_path, monkeypatch):
    shorten_fit(1, monkeypatch.setattr)
    keys = {"score": "vsd", "normal_consistency": 0.1, "batch": 1, "iter": 3, "coarse_iter": 2}
    folders = {"sd_model": str(model_folder), "out_dir": str(tmp_path)}
    run = SteppedRun(parse_config({**TINY, **keys, **folders}, "test"))
    untimed = StableDiffusion.predict_lora_noise

    def measure(run):
        watch = Stopwatch(torch.device("cpu"))
        with watch.watching(stages(run.task.scene.rasteriser, run.optimizer)):
            assert StableDiffusion.predict_lora_noise is not untimed
            run.step()
        return {name: len(seconds) for name, seconds in watch.seconds.items()}

    counts = phases_of(run, 1, False, measure)["phases"]["coarse"]
    assert counts["VSD's denoiser"] == counts["surface terms"] == 1
