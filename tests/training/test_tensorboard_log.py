"""Test the event files with TensorBoard's own reader."""

import errno
import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from render.image_io.image import write_png
from sd.schedule import ScheduleConfig, geometry_schedule
from training.run_log import RunLog, TensorBoardLog, require_tensorboard

PHASES = geometry_schedule(ScheduleConfig(iter=1000, coarse_iter=500))
FIT, COARSE = PHASES.phase(1), PHASES.phase(500)


def read(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return events


def write(folder, first: int, last: int) -> None:
    pytest.importorskip("tensorboard")
    with RunLog(folder, 10, first, mirror=TensorBoardLog(folder, first)) as log:
        for step in range(first + 1, last + 1):
            values = {"loss": 1.0 / step, "gradient_norm": 2.0 * step}
            log.record(step, FIT if step <= 2 else COARSE, values if step > 2 else {"loss": 7.0})
            if step % 5 == 0:
                path = folder / f"stills/{step:06d}.png"
                write_png(path, torch.full((4, 6, 3), step / 10))
                log.still(step, path)


def test_the_same_numbers_and_pictures(tmp_path):
    write(tmp_path, 0, 10)
    events = read(tmp_path)
    assert set(events.Tags()["scalars"]) == {"fit/loss", "distillation/loss", "distillation/gradient_norm"}
    assert [(event.step, event.value) for event in events.Scalars("fit/loss")] == [(1, 7.0), (2, 7.0)]
    loss = [(event.step, event.value) for event in events.Scalars("distillation/loss")]
    assert loss == [(step, pytest.approx(1 / step)) for step in range(3, 11)]
    pictures = events.Images("stills")
    assert [picture.step for picture in pictures] == [5, 10]
    (tmp_path / "first.png").write_bytes(pictures[0].encoded_image_string)
    with Image.open(tmp_path / "first.png") as image:
        assert image.size == (6, 4) and set(np.unique(image)) == {128}
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 10


def test_resumed_run_logs_every_step_once(tmp_path):
    write(tmp_path, 0, 8)
    write(tmp_path, 5, 10)
    events = read(tmp_path)
    assert [event.step for event in events.Scalars("fit/loss")] == [1, 2]
    assert [event.step for event in events.Scalars("distillation/loss")] == list(range(3, 11))


def test_the_name_of_a_run_is_its_folder(tmp_path):
    """In TensorBoard, the name of a run is the folder of its event files, relative to the log folder."""
    write(tmp_path / "mug", 0, 1)
    assert [path.parent for path in tmp_path.rglob("events.out.tfevents*")] == [tmp_path / "mug"]


@pytest.mark.parametrize("call", [lambda log: log.close(), lambda log: log.record(1, FIT, {"loss": 1.0})])
def test_an_error_names_the_folder(tmp_path, monkeypatch, call):
    pytest.importorskip("tensorboard")
    log = TensorBoardLog(tmp_path)

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log._writer, "close", full_disk)
    monkeypatch.setattr(log._writer, "add_scalar", full_disk)
    with pytest.raises(OSError, match="No space left on device") as caught:
        call(log)
    assert caught.value.filename == str(tmp_path)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="log = 'tensorboard'.*pip install tensorboard") as caught:
        require_tensorboard()
    assert "\n" not in str(caught.value)
