"""Test that a step renders incomplete images again, and that the host does not wait for the GPU in a step."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from benchmarks.stages import SteppedRun, sphere
from reduced_work import shorten_fit
from toy_config import TINY

from configs.schema import parse_config
from render.mesh_io.write_obj import write_obj
from render.scene import GeometryScene
from training import loop


def stepped_run(model_folder, folder, **keys) -> SteppedRun:
    """Return a small run that has finished the fit."""
    keys = {"batch": 2, "iter": 8, "coarse_iter": 4, "sd_model": str(model_folder), **keys}
    run = SteppedRun(parse_config({**TINY, **keys, "out_dir": str(folder)}, "test"))
    for _, phase in run.task.schedule.phases:
        if phase.fit:
            run.enter(phase)
            run.step()
    return run


def weights_after_two_steps(run: SteppedRun) -> list[torch.Tensor]:
    run.enter(run.task.schedule.phases[-1][1])
    before = [parameter.detach().clone() for parameter in run.task.scene.parameters()]
    run.step()
    run.step()
    after = [parameter.detach().clone() for parameter in run.task.scene.parameters()]
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    return after


@pytest.mark.parametrize("score", ["sds", "vsd"])
def test_incomplete_images_are_rendered_again(score, model_folder, tmp_path, monkeypatch):
    shorten_fit(1, monkeypatch.setattr)
    expected = weights_after_two_steps(stepped_run(model_folder, tmp_path, score=score))
    render, is_complete = GeometryScene.forward, GeometryScene.is_complete
    calls, answers = [], iter([False, True, True])

    def forward(self, views, wait=True):
        calls.append((views, wait))
        return render(self, views, wait)

    monkeypatch.setattr(GeometryScene, "forward", forward)
    if score == "sds":
        monkeypatch.setattr(GeometryScene, "is_complete", lambda self: is_complete(self) and next(answers))
    found = weights_after_two_steps(stepped_run(model_folder, tmp_path, score=score))
    assert all(torch.equal(ours, exact) for ours, exact in zip(found, expected, strict=True))
    # The first image is rendered twice. A score that trains a denoiser waits for the complete mesh.
    assert [wait for _, wait in calls] == ([False] * 3 if score == "sds" else [True] * 2)
    if score == "sds":
        assert calls[0][0] is calls[1][0] and calls[2][0] is not calls[0][0]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["geometry_modeling", "appearance_modeling"])
def test_host_does_not_wait_for_the_gpu_in_a_step(mode, model_folder, tmp_path, monkeypatch):
    """The losses are read by waiting for an event, which is the only wait."""
    shorten_fit(1, monkeypatch.setattr)
    keys = {"mode": mode, "device": "cuda", "dmtet_grid": 32}
    if mode == "appearance_modeling":
        keys["base_mesh"] = str(write_obj(tmp_path / "mesh", sphere(2000)))
    run = stepped_run(model_folder, tmp_path / "out", **keys)
    for _, phase in run.task.schedule.phases:
        if phase.fit:
            continue
        run.enter(phase)
        # Kernels are compiled and graphs are captured in the first steps.
        for _ in range(3):
            run.step()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found = [str(w.message) for w in caught if "synchronizing CUDA operation" in str(w.message)]
        assert not found, (phase.name, found)


def test_statistics_of_the_fit_are_reported_before_the_next_phase(tmp_path, monkeypatch):
    """The first step of score distillation is slow. Its time does not belong to the fit."""
    shorten_fit(2, monkeypatch.setattr)
    calls = []
    for name in ("report_stats", "fit_step", "train_step", "save_checkpoint"):
        monkeypatch.setattr(loop, name, lambda state, *_, name=name: calls.append((name, state.step)))
    keys = {"iter": 4, "coarse_iter": 3, "out_dir": str(tmp_path)}
    config = parse_config({**TINY, **keys}, "test")
    other_rank = SimpleNamespace(is_main=False, broadcast_state=lambda *_: None)
    state = loop.TrainState(0, config.phases, optimizer=None, prefetcher=None)
    loop.train_loop(state, config, SimpleNamespace(scene=None), None, SimpleNamespace(), other_rank)
    steps = [("fit_step", 1), ("fit_step", 2), ("report_stats", 3), ("train_step", 3), ("train_step", 4)]
    assert calls == [*steps, ("report_stats", 4), ("save_checkpoint", 4)]
