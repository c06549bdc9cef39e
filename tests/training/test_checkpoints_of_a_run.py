"""Test the checkpoints of whole runs: they are written while steps go on, and survive errors and signals."""

import os
import signal
import threading
import time

import pytest
import torch
from reduced_work import shorten_fit
from toy_run import FIT, geometry, refused

import train
from geometry.dmtet import DMTet
from geometry.marching_tets import EmptySurfaceError
from training import loop, resume
from training.adamw import AdamW
from training.checkpoint import load_latest


@pytest.fixture(autouse=True, scope="module")
def short_fit():
    with pytest.MonkeyPatch.context() as patch:
        shorten_fit(FIT, patch.setattr)
        yield


def test_empty_surface_stops_with_advice(model_folder, tmp_path, capsys, caplog, monkeypatch):
    config = geometry(tmp_path, model_folder, checkpoint_interval=FIT + 1)
    calls, real = [], DMTet.mesh

    def vanish(self):
        calls.append(1)
        if len(calls) > 4:
            with torch.no_grad():
                list(self.network.parameters())[-1].zero_()
        return real(self)

    assert issubclass(EmptySurfaceError, ValueError)
    monkeypatch.setattr(DMTet, "mesh", vanish)
    message = refused(["--config", config], capsys, caplog)
    for word in (f"step {FIT + 1}", "guidance_weight", "start shape", "seed", "checkpoint"):
        assert word in message
    assert load_latest(tmp_path / "shape/checkpoints").step == FIT + 1


def test_steps_go_on_while_a_checkpoint_is_written(model_folder, tmp_path, monkeypatch):
    config = geometry(tmp_path, model_folder, checkpoint_interval=FIT + 1)
    write, step, went_on = resume.save_checkpoint, loop.train_step, threading.Event()
    waits = []

    def slow(folder, number, *rest):
        if number == FIT + 1:
            waits.append(went_on.wait(60))
        return write(folder, number, *rest)

    def watched(state, *rest):
        if state.step == FIT + 3:
            went_on.set()
        step(state, *rest)

    monkeypatch.setattr(resume, "save_checkpoint", slow)
    monkeypatch.setattr(loop, "train_step", watched)
    assert train.main(["--config", config]) == 0
    assert waits == [True]
    names = sorted(path.name for path in (tmp_path / "shape/checkpoints").iterdir())
    assert names == [f"step_{number:06d}" for number in (FIT + 1, FIT + 4)]


def test_an_error_waits_for_the_checkpoint_that_is_being_written(
    model_folder, tmp_path, capsys, caplog, monkeypatch
):
    config = geometry(tmp_path, model_folder, checkpoint_interval=FIT + 1)
    write, step = resume.save_checkpoint, loop.train_step

    def slow(*arguments):
        time.sleep(0.5)
        write(*arguments)

    def exhausting(state, *rest):
        if state.step == FIT + 2:
            raise MemoryError
        step(state, *rest)

    monkeypatch.setattr(resume, "save_checkpoint", slow)
    monkeypatch.setattr(loop, "train_step", exhausting)
    message = refused(["--config", config], capsys, caplog)
    assert "out of memory" in message and f"the checkpoint of step {FIT + 1} is kept" in message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_an_error_does_not_end_the_checkpoint_that_is_being_written(
    number, model_folder, tmp_path, capsys, caplog, monkeypatch
):
    config = geometry(tmp_path, model_folder, checkpoint_interval=FIT + 1)
    write, step, failed = resume.save_checkpoint, loop.train_step, threading.Event()

    def slow(*arguments):
        assert failed.wait(60)
        time.sleep(0.2)
        os.kill(os.getpid(), number)
        time.sleep(0.2)
        write(*arguments)

    def failing(state, *rest):
        if state.step == FIT + 2:
            failed.set()
            raise ValueError("the cause")
        step(state, *rest)

    monkeypatch.setattr(resume, "save_checkpoint", slow)
    monkeypatch.setattr(loop, "train_step", failing)
    assert "the cause" in refused(["--config", config], capsys, caplog)
    assert load_latest(tmp_path / "shape/checkpoints").step == FIT + 1


def test_a_full_disk_ends_the_run_before_the_next_checkpoint(
    model_folder, tmp_path, capsys, caplog, monkeypatch
):
    config = geometry(tmp_path, model_folder, checkpoint_interval=FIT + 1)
    write, failed, last = resume.save_checkpoint, threading.Event(), []

    def full(folder, number, *rest):
        if number == FIT + 1:
            failed.set()
            raise OSError(f"cannot write the checkpoint of step {number}")
        return write(folder, number, *rest)

    def watched(state, *rest):
        last.append(state.step)
        if state.step == FIT + 2:
            assert failed.wait(60)
        step(state, *rest)

    step = loop.train_step
    monkeypatch.setattr(resume, "save_checkpoint", full)
    monkeypatch.setattr(loop, "train_step", watched)
    assert f"cannot write the checkpoint of step {FIT + 1}" in refused(["--config", config], capsys, caplog)
    # The thread may end after step FIT + 2.
    assert last in ([FIT + 1, FIT + 2], [FIT + 1, FIT + 2, FIT + 3])


def test_a_state_without_a_surface_is_not_saved(model_folder, tmp_path, capsys, caplog, monkeypatch):
    config = geometry(tmp_path, model_folder, checkpoint_interval=1, video_interval=0, save_interval=0)
    steps, real, write = [], AdamW.step, resume.save_checkpoint

    def slow(folder, number, *rest):
        time.sleep(0.5 * (number == FIT + 1))
        write(folder, number, *rest)

    def lethal(self, *arguments):
        real(self, *arguments)
        steps.append(1)
        if len(steps) == FIT + 2:
            with torch.no_grad():
                self.param_groups[0]["params"][-1].zero_()

    # The previous checkpoint is still being written when the surface vanishes.
    monkeypatch.setattr(resume, "save_checkpoint", slow)
    monkeypatch.setattr(AdamW, "step", lethal)
    message = refused(["--config", config], capsys, caplog)
    assert f"step {FIT + 2}" in message and f"step {FIT + 1}" in message
    assert load_latest(tmp_path / "shape/checkpoints").step == FIT + 1
