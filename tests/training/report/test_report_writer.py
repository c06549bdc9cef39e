"""Test when the page of a run is written, and which final state it shows."""

import logging
import threading
import zlib

import pytest
from report_run import example_info, write_run

from training.report import model_viewer, report_writer
from training.report.report_writer import RunReport


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "out")


def state_of(folder) -> str:
    page = (folder / "report.html").read_text(encoding="utf-8")
    return page.partition('<span class="state ')[2].partition('"')[0]


def test_the_page_follows_the_run(folder, monkeypatch):
    monkeypatch.setattr(report_writer, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(report_writer, "PAUSE_FACTOR", 0.0)
    page = folder / "report.html"
    page.unlink(missing_ok=True)
    with RunReport(example_info(folder)) as report:
        with report.timed("set-up"):
            report.finish_page()
            assert "step 0 of 100" in page.read_text()
        report.begin(0)
        with report.timed("the prior's set-up"):
            report.finish_page()
            assert "step 0 of 100, the prior&#x27;s set-up" in page.read_text()
        report.update(40)
        assert state_of(folder) == "running" and "step 40 of 100." in (folder / "report.html").read_text()
        report.update(100)
    assert state_of(folder) == "done" and ">set-up</th>" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("error", "state", "word"),
    [
        (SystemExit(130), "stopped", "resumes from the last checkpoint"),
        (KeyboardInterrupt(), "stopped", "resumes from the last checkpoint"),
        (ValueError("step 7: <no> surface"), "failed", "ValueError: step 7: &lt;no&gt; surface"),
    ],
)
def test_page_shows_the_final_state(folder, error, state, word):
    with pytest.raises(type(error)), RunReport(example_info(folder)) as report:
        report.begin(7)
        raise error
    assert state_of(folder) == state and word in (folder / "report.html").read_text()


def test_page_updates_are_limited_by_their_duration(folder, monkeypatch):
    clock, written = [0.0], []

    def slow_page(example_info, state):
        written.append(state.step)
        clock[0] += 0.19
        return ""

    monkeypatch.setattr(report_writer, "run_page", slow_page)
    monkeypatch.setattr(report_writer.time, "monotonic", lambda: clock[0])
    with RunReport(example_info(folder)) as report:
        report.begin(1)
        for step in range(2, 101):
            clock[0] += 1.0
            report.update(step)
    # Writing a page takes 0.19 s and is followed by a pause of 50 times this duration, so a page is written
    # at every tenth step of 1 s. The last page is always written.
    assert written == [*range(1, 101, 10), 100]


def test_the_model_is_compressed_once_and_before_the_final_page(folder, monkeypatch, caplog):
    compressed = []

    def deflated(content: bytes, most: int) -> bytes:
        compressed.append(threading.current_thread().name)
        return zlib.compress(content)

    monkeypatch.setattr(model_viewer, "_deflated", deflated)
    model_viewer._embed.cache_clear()
    with RunReport(example_info(folder)) as report:
        report.begin(100)
        report.prepare_model()
    assert len(compressed) == 1 and compressed[0].startswith("report")
    assert state_of(folder) == "done" and 'id="model"' in (folder / "report.html").read_text()
    monkeypatch.setattr(report_writer, "prepare_model", lambda info: 1 / 0)
    with RunReport(example_info(folder)) as report:
        report.begin(100)
        report.prepare_model()
    assert state_of(folder) == "done" and caplog.text == ""


def test_a_page_that_cannot_be_written_is_one_warning(folder, monkeypatch, caplog):
    def full(path, content):
        raise OSError("no space left")

    monkeypatch.setattr(report_writer, "write_text", full)
    monkeypatch.setattr(report_writer, "PAUSE_SECONDS", -1.0)
    monkeypatch.setattr(report_writer, "PAUSE_FACTOR", 0.0)
    with caplog.at_level(logging.WARNING), RunReport(example_info(folder)) as report:
        report.begin(1)
        report.update(2)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / name} cannot be written: no space left" for name in ("config.json", "report.html")
    ]


def test_the_page_exists_from_the_start(folder):
    (folder / "report.html").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="bad map"), RunReport(example_info(folder)) as report:
        assert 'class="state running"' in report.path.read_text()
        raise ValueError("bad map")
    assert "ValueError: bad map" in report.path.read_text()


def test_a_failure_before_the_run_has_begun_leaves_an_earlier_page(folder):
    (folder / "report.html").write_text("an earlier page")
    with pytest.raises(ValueError, match="bad map"), RunReport(example_info(folder)) as report:
        report.update(0)
        raise ValueError("bad map")
    assert (folder / "report.html").read_text() == "an earlier page"
