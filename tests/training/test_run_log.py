"""The log file and what is shown while a run goes on."""

import io
import itertools
import json

import pytest

from training import run_log
from training.run_log import RunLog


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Half a second passes at every look at the clock."""
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
            log.record(step, "coarse" if step <= 20 else "fine", {"loss": 1 / step, "area": 2.0})
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
        log.record(1, "coarse", {"loss": float("nan")})
    assert lines(tmp_path) == [{"step": 1, "phase": "coarse", "seconds": 0.5, "loss": "nan"}]


def test_away_from_a_terminal_a_line_every_tenth(tmp_path):
    shown = run(tmp_path, 0, 40).getvalue().splitlines()
    assert len(shown) == 10 and shown[0].startswith("coarse: step 4/40, loss 0.25, ")
    assert shown[-1].startswith("fine: step 40/40") and "it/s" in shown[0] and "left" in shown[0]
    assert len(run(tmp_path, 20, 40).getvalue().splitlines()) == 5


def test_on_a_terminal_one_bar(tmp_path):
    shown = run(tmp_path, 10, 40, stream=Terminal()).getvalue()
    last = shown.split("\r")[-1]
    assert "fine" in last and "40/40" in last and "loss=" not in last and "loss 0.025" in last
    # Refreshed at most once a second, not once a step.
    assert shown.count("\r") < 10
