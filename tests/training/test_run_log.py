"""Test the log file, and the progress of a run on standard error."""

import io
import itertools
import json

import pytest

from configs.schema import parse_config
from sd.schedule import ScheduleConfig, geometry_schedule
from training import run_log
from training.run_log import RunLog, log_end, log_start

PHASES = geometry_schedule(ScheduleConfig(iter=1000, coarse_iter=500))
FIT, COARSE, FINE = (PHASES.phase(step) for step in (1, 450, 1000))


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Replace the clock with one that advances by half a second at each call."""
    ticks = itertools.count(100, 0.5)
    monkeypatch.setattr(run_log.time, "monotonic", lambda: next(ticks))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(path) -> list[dict]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def run(folder, first: int, last: int, total: int = 40, stream: io.StringIO | None = None) -> io.StringIO:
    stream = stream or io.StringIO()
    with RunLog(folder, total, resumed_step=first, stream=stream) as log:
        for step in range(first + 1, last + 1):
            log.record(step, COARSE if step <= 20 else FINE, {"loss": 1 / step, "area": 2.0})
    return stream


def test_one_line_a_step(tmp_path):
    run(tmp_path, 0, 3)
    assert lines(tmp_path)[2] == {"step": 3, "phase": "coarse", "seconds": 1.5, "loss": 1 / 3, "area": 2.0}
    assert [record["step"] for record in lines(tmp_path)] == [1, 2, 3]


def test_a_resumed_run_has_the_lines_of_an_uninterrupted_one(tmp_path):
    run(tmp_path / "whole", 0, 40)
    run(tmp_path / "resumed", 0, 33)
    with (tmp_path / "resumed" / "log.jsonl").open("a") as file:
        file.write('{"step": 34, "pha')
    run(tmp_path / "resumed", 25, 40)
    assert lines(tmp_path / "resumed") == lines(tmp_path / "whole")
    run(tmp_path / "resumed", 0, 2)
    assert len(lines(tmp_path / "resumed")) == 2


def test_numbers_that_json_lacks(tmp_path):
    with RunLog(tmp_path, 5, stream=io.StringIO()) as log:
        log.record(1, COARSE, {"loss": float("nan")})
    assert lines(tmp_path) == [{"step": 1, "phase": "coarse", "seconds": 0.5, "loss": "nan"}]


def test_away_from_a_terminal_a_line_every_tenth(tmp_path):
    shown = run(tmp_path, 0, 40).getvalue().splitlines()
    assert len(shown) == 10 and shown[0].startswith("coarse, step 4 of 40, loss 0.25, ")
    assert shown[-1].startswith("fine, step 40 of 40") and shown[0].endswith("it/s")
    assert len(run(tmp_path, 20, 40).getvalue().splitlines()) == 5


def test_on_a_terminal_one_bar(tmp_path):
    shown = run(tmp_path, 10, 40, stream=Terminal()).getvalue()
    last = shown.split("\r")[-1]
    assert "fine" in last and "40/40" in last and "loss=" not in last and "loss 0.025" in last
    # The bar is refreshed at most once per second, not at every step.
    assert shown.count("\r") < 10


class Progress:
    """A stub of a command's progress: this run is the first of two, and the remaining time is constant."""

    label, scope = "shape, 1 of 2", " for all 2"

    def __init__(self):
        self.steps = []

    def step(self, step):
        self.steps.append(step)

    def remaining(self):
        return 300.0


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_position_in_the_command_and_remaining_time_are_shown(tmp_path, stream):
    progress, shown = Progress(), stream()
    with RunLog(tmp_path, 4, stream=shown, progress=progress) as log:
        for step in range(1, 5):
            log.record(step, FIT, {"loss": 1.0})
    assert progress.steps == [1, 2, 3, 4]
    text = shown.getvalue()
    assert "shape, 1 of 2: fit" in text and ", 5 min left for all 2" in text


def test_the_start_and_the_end_of_a_run_name_its_files(tmp_path, caplog):
    caplog.set_level("INFO")
    config = parse_config(
        {"out_dir": str(tmp_path), "text": "A red mug", "sd_model": "data/tiny-sd"}, "a.json"
    )
    log_start(config, Progress(), tmp_path / "report.html")
    log_end(config, "shape, 1 of 2", "61 s, 1.2 GB", tmp_path / "report.html")
    assert [record.getMessage() for record in caplog.records] == [
        "shape, 1 of 2: 'A red mug' with the prior data/tiny-sd; about 5 min for all 2",
        f"report: {tmp_path}/report.html",
        "done: shape, 1 of 2, in 61 s, 1.2 GB",
        f"report: {tmp_path}/report.html",
        f"mesh: {tmp_path}/dmtet_mesh/mesh.glb",
    ]
