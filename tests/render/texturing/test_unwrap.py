"""Test unwrapping libraries in subprocesses: results, timeouts, panics and crashes."""

import os
import time

import numpy as np
import pytest
from export_shapes import bumpy_ball

from render.image_io.file_lock import try_lock
from render.texturing import unwrap
from render.texturing.unwrap import UnwrapError, unwrap_with


def ball(scale=0.5):
    mesh = bumpy_ball(1)
    return mesh.v_pos.numpy() * np.float32(scale) + np.float32(0.5), mesh.faces.numpy()


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Return a function that replaces the program of the worker process with the given text."""

    def put(text: str):
        path = tmp_path / "worker.py"
        path.write_text(
            f"import json, os, sys, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
            f"sys.argv[1:] = json.loads(sys.stdin.readline())\n{text}"
        )
        monkeypatch.setattr(unwrap, "WORKER", path)
        return tmp_path / "pid"

    return put


@pytest.mark.parametrize("library", ["xatlas", "uvunwrap"])
def test_unwrapping_is_deterministic(library):
    positions, faces = ball()
    (uv, uv_faces, charts), again = (unwrap_with(library, positions, faces, 256, 2) for _ in range(2))
    assert uv_faces.shape == faces.shape and uv.min() >= 0 and uv.max() <= 1 and charts > 0
    assert np.array_equal(uv, again[0]) and np.array_equal(uv_faces, again[1]) and charts == again[2]


def test_endless_library_is_killed(worker):
    pid = worker("time.sleep(600)")
    with pytest.raises(UnwrapError, match="not finished after 1 s"):
        unwrap_with("xatlas", *ball(), 256, 2, timeout=1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_panic_ends_the_wait(worker):
    """One thread panics, but the process does not end. This case has occurred in practice."""
    pid = worker(
        "sys.stderr.write(\"thread '<unnamed>' panicked at src/a.rs:5:12:\\nindex out of bounds: 13\\n\")\n"
        "sys.stderr.flush()\ntime.sleep(600)"
    )
    start = time.monotonic()
    with pytest.raises(UnwrapError, match="panic: index out of bounds: 13"):
        unwrap_with("uvunwrap", *ball(), 256, 2, timeout=120.0)
    # If panics were not detected, the call would take the whole timeout of 120 s.
    assert time.monotonic() - start < 100
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_started_worker_is_used_unless_it_has_ended(worker):
    pid = worker("sys.exit(5)")
    for ended in (False, True):
        unwrap.start_worker()
        unwrap.start_worker()
        (waiting,) = unwrap._waiting
        if ended:
            waiting.kill()
            waiting.wait()
        with pytest.raises(UnwrapError, match="exit code 5"):
            unwrap_with("xatlas", *ball(), 256, 2)
        assert (int(pid.read_text()) == waiting.pid) is not ended and not unwrap._waiting


def test_a_worker_that_cannot_be_started_is_an_error_of_the_unwrapping(monkeypatch):
    def fails(*_, **__):
        raise OSError("too many processes")

    monkeypatch.setattr(unwrap.subprocess, "Popen", fails)
    unwrap.start_worker()
    with pytest.raises(OSError, match="too many processes"):
        unwrap_with("xatlas", *ball(), 256, 2)


def test_a_worker_without_work_ends_with_its_input():
    unwrap.start_worker()
    process = unwrap._waiting.pop()
    process.stdin.close()
    assert process.wait(30) == 0 and process.stdout.read() == b""
    process.stdout.close()


@pytest.mark.parametrize(
    "text, reason",
    [
        ("raise ValueError('no good')", "ValueError: no good"),
        ("os.abort()", "exit code -6"),
        ("sys.exit(3)", "exit code 3"),
    ],
)
def test_error_or_crash_is_one_line(worker, text, reason):
    worker(text)
    with pytest.raises(UnwrapError, match=reason):
        unwrap_with("xatlas", *ball(), 256, 2)


@pytest.mark.parametrize("pages, size, reason", [(2, 1.0, "2 pages"), (1, 0.1, "1 charts fill 0.5 %")])
def test_result_that_does_not_fill_one_texture_is_rejected(worker, pages, size, reason):
    worker(
        f"import numpy as np\nuv = np.array([[0, 0], [{size}, 0], [0, {size}]], np.float32)\n"
        f"np.savez(sys.argv[3], uv=uv, uv_faces=np.array([[0, 1, 2]]), charts=1, pages={pages})"
    )
    with pytest.raises(UnwrapError, match=reason):
        unwrap_with("xatlas", *ball(), 256, 2)


def test_leftovers_after_kill_of_an_unwrapper(tmp_path, monkeypatch, worker):
    """Folders of killed processes are removed. A locked folder and a folder without a lock are kept.

    The worker writes the names of all folders. While it runs, its own folder is locked.
    """
    monkeypatch.setattr(unwrap.tempfile, "tempdir", str(tmp_path))
    for name in ("unwrap-dead", "unwrap-alive", "unwrap-foreign"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in.npz").write_bytes(b"mesh")
    (tmp_path / "unwrap-dead" / "lock").touch()
    worker(
        "import fcntl, pathlib\nown = pathlib.Path(sys.argv[2]).parent\n"
        "try:\n    fcntl.flock(open(own / 'lock'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n    state = 'free'\n"
        "except BlockingIOError:\n    state = 'locked'\n"
        "names = sorted(path.name for path in own.parent.glob('unwrap-*') if path != own)\n"
        "sys.exit(' '.join([state, *names]))"
    )
    with try_lock(tmp_path / "unwrap-alive" / "lock"):
        with pytest.raises(UnwrapError, match="locked unwrap-alive unwrap-foreign"):
            unwrap_with("xatlas", *ball(), 256, 2)
    assert sorted(path.name for path in tmp_path.glob("unwrap-*")) == ["unwrap-alive", "unwrap-foreign"]
