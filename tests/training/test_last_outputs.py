"""Test that the last checkpoint is finished before the export is written, also after errors and signals."""

import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from configs.schema import parse_config
from sd.schedule import geometry_schedule
from training import export
from training.input_files import InputFiles
from training.last_outputs import LastOutputs
from training.report.report_writer import RunReport
from training.tasks import Task

WAIT_SECONDS = 30


def full_disk() -> None:
    raise OSError("the disk is full")


def test_an_error_of_the_checkpoint_replaces_a_later_error():
    with pytest.raises(OSError, match="the disk is full"), LastOutputs() as last:
        last.start_checkpoint(full_disk)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), LastOutputs() as last:
        last.start_checkpoint(lambda: None)
        raise ZeroDivisionError


def test_the_block_ends_after_the_checkpoint():
    begun, written = threading.Event(), []

    def save() -> None:
        assert begun.wait(WAIT_SECONDS)
        written.append(1)

    with LastOutputs() as last:
        assert not last.started
        last.start_checkpoint(save)
        assert last.started and not written
        begun.set()
    assert written == [1]


def test_writers_are_closed_after_the_checkpoint_also_after_errors():
    for save, error in ((lambda: None, ZeroDivisionError), (full_disk, OSError)):
        closed = []
        writers = ExitStack()
        writers.callback(lambda closed=closed: closed.append(1))
        with pytest.raises(error), LastOutputs() as last:
            last.start_checkpoint(save)
            with writers:
                last.close_later(writers.pop_all())
            assert not closed
            raise ZeroDivisionError
        assert closed == [1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_effect_after_the_checkpoint(number):
    """The signal arrives while the checkpoint is being written, and again afterwards."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        for late in (False, True):
            proceed, written = threading.Event(), []

            def save(proceed=proceed, written=written) -> None:
                assert proceed.wait(WAIT_SECONDS)
                written.append(1)

            with pytest.raises(KeyboardInterrupt), LastOutputs() as last:
                last.start_checkpoint(save)
                last.hold_signals()
                if late:
                    proceed.set()
                    last.finish_checkpoint()
                os.kill(os.getpid(), number)
                assert not written
                proceed.set()
                until = time.monotonic() + WAIT_SECONDS
                while time.monotonic() < until:
                    time.sleep(0.005)
            assert written == [1] and signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_a_signal_of_the_last_step_takes_effect_after_the_checkpoint():
    proceed, written = threading.Event(), []

    def save() -> None:
        assert proceed.wait(WAIT_SECONDS)
        written.append(1)

    with pytest.raises(KeyboardInterrupt), LastOutputs() as last:
        last.start_checkpoint(save)
        last.hold_signals(signal.SIGINT)
        assert not written
        proceed.set()
        last.finish_checkpoint()
        time.sleep(WAIT_SECONDS)
    assert written == [1]


def test_no_file_is_exported_before_the_checkpoint(tmp_path):
    """If the checkpoint cannot be written, the mesh of an earlier export is kept."""
    config = parse_config({"out_dir": str(tmp_path / "out"), "iter": 5, "coarse_iter": 5}, "config")
    folder = tmp_path / "out/dmtet_mesh"
    folder.mkdir(parents=True)
    (folder / "mesh.obj").write_text("earlier")

    def write(folder: Path) -> None:
        (folder / "mesh.obj").write_text("new")

    task = Task(
        None, geometry_schedule(config.schedule), None, lambda: None, lambda: write, True, InputFiles()
    )
    with pytest.raises(OSError, match="the disk is full"), LastOutputs() as last:
        last.start_checkpoint(full_disk)
        export.export_run(config, task, RunReport(None, quiet=True), last)
    assert [path.name for path in folder.iterdir()] == ["mesh.obj"]
    assert (folder / "mesh.obj").read_text() == "earlier"
