"""Test output to the terminal: closed pipes, full disks, control characters, and errors on one line."""

import errno
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from render.image_io.atomic import atomic_path, staged_folder, write_bytes, write_text
from sd.schedule import ScheduleConfig, geometry_schedule
from training.console import LineFormatter, LossyStream, describe_error, run_tool, setup_logging
from training.report.index_page import write_index
from training.report.page import document, escape, link
from training.run_log import RunLog

COARSE = geometry_schedule(ScheduleConfig(iter=1000, coarse_iter=500)).phase(450)
ROOT = Path(__file__).parents[2]
NOISY = """
import atexit, logging, pathlib, sys, threading, time
from training.console import setup_logging
from training.launch import run_and_exit
from sd.schedule import ScheduleConfig, geometry_schedule
from training.run_log import RunLog

def main():
    setup_logging()
    phase = geometry_schedule(ScheduleConfig(iter=1000, coarse_iter=500)).phase(450)
    with RunLog(sys.argv[1], 300) as log:
        for step in range(1, 301):
            log.record(step, phase, {"loss": 1.0})
            logging.info("x" * 100)
    return 0

atexit.register(pathlib.Path(sys.argv[1], "atexit").touch)
threading.Thread(target=time.sleep, args=(600,)).start()
run_and_exit(main)
"""


@pytest.mark.parametrize("target", ["closed pipe", pytest.param("/dev/full", marks=pytest.mark.slow)])
def test_stderr_pipe_closed(target, tmp_path):
    """A run completes and exits with 0 even if its log lines cannot be written.

    Functions registered with `atexit` are called, and the end does not wait for threads.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if target == "/dev/full":
        stderr = os.open(target, os.O_WRONLY)
    else:
        reading, stderr = os.pipe()
        os.close(reading)
    command = [sys.executable, "-c", NOISY, str(tmp_path)]
    done = subprocess.run(command, env=environment, stderr=stderr, timeout=120)
    os.close(stderr)
    assert done.returncode == 0
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 300 and (tmp_path / "atexit").exists()


def test_lossy_stream_ignores_a_full_device():
    with open("/dev/full", "w") as full:
        lossy = LossyStream(full)
        lossy.write("a")
        lossy.flush()
        with pytest.raises(OSError, match="No space left"):
            full.flush()
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), full.fileno())


def test_lossy_stream_writes_the_encodable_part():
    stream = io.StringIO()
    lossy = LossyStream(stream)
    lossy.write("a")
    assert stream.getvalue() == "a" and not lossy.isatty()
    stream.close()
    lossy.write("b")
    lossy.flush()
    assert not lossy.isatty()


def test_control_characters_are_escaped():
    record = logging.makeLogRecord({"msg": "tensor \x1b]0;title\x07 \u202eevil\tend\nnext \x9b"})
    assert LineFormatter("%(message)s").format(record) == (
        "tensor \\x1b]0;title\\x07 \\u202eevil\tend\nnext \\x9b"
    )


def full(*_, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "mkstemp", "block", "staged"])
def test_disk_full_words(call, tmp_path, monkeypatch):
    """Every error about a full disk contains the name of the final file, not of a temporary file."""
    path = tmp_path / "sub" / "config.json"
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif call == "mkstemp":
        monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.raises(OSError) as error:
        if call == "block":
            with atomic_path(path):
                full()
        elif call == "staged":
            with staged_folder(path) as folder:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "mesh.obj"))
        else:
            write_bytes(path, b"{}")
    assert describe_error(error.value) == f"{path}: No space left on device"
    assert error.value.errno == errno.ENOSPC


def test_disk_full_words_of_the_log(tmp_path):
    log = RunLog(tmp_path, 10)
    log._file.close()

    class Full(io.StringIO):
        def flush(self):
            full()

    log._file = Full()
    with pytest.raises(OSError) as error:
        log.record(1, COARSE, {"loss": 1.0})
    assert describe_error(error.value) == f"{tmp_path}/log.jsonl: No space left on device"


def test_non_utf8_names(tmp_path):
    """Names that are not UTF-8 are escaped in pages and JSON files. The links point to the files."""
    name = os.fsdecode(b"caf\xe9.json")
    page = tmp_path / "page.html"
    write_text(page, document(name, f"<p>{escape(name)}</p>"))
    assert "caf\\udce9.json" in page.read_text(encoding="utf-8")
    assert link(name) == "caf%E9.json"
    write_text(tmp_path / "config.json", json.dumps({"name": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == {"name": name}
    write_index(tmp_path / "index.html", f"Results in {name}", f"train.py --config {name}", [], False)
    assert "caf\\udce9.json" in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines  here"), "two lines here"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.obj"),
            "a.obj: No such file or directory",
        ),
        (OSError("no number"), "no number"),
    ],
)
def test_an_error_is_one_line(error, line):
    assert describe_error(error) == line


@pytest.mark.parametrize("name", ["httpx", "trimesh", "trimesh.visual", "DracoPy"])
def test_log_messages_of_libraries_are_not_shown(name, capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    setup_logging()
    logging.getLogger(name).warning("HTTP Request: GET")
    logging.getLogger("sd.loading.hub").info("ours")
    logging.getLogger("another_library").warning("theirs")
    assert capsys.readouterr().err.splitlines() == ["ours", "warning: theirs"]


def test_a_tool_names_a_folder_that_was_given_instead_of_a_file(tmp_path, capsys):
    assert run_tool(tmp_path.read_text) == 2
    assert capsys.readouterr().out == f"error: {tmp_path}: Is a directory\n"
