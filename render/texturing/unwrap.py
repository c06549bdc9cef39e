"""Unwrapping by xatlas or uvunwrap in a subprocess that is killed after a time limit.

On torn surfaces, uvunwrap can panic in one of its threads and then wait for this thread forever. A subprocess
is used, because a thread cannot be killed.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from render.image_io.file_lock import try_lock

WORKER = Path(__file__).with_name("unwrap_worker.py")
# The time limit in seconds is a constant plus an amount per face. It is several times the time measured on
# two cores, so that unwrapping also finishes on a busy machine. Measured: 6.5 s for 20,000 faces and 161 s
# for 199,000 faces with xatlas; 0.6 s and 6.9 s with uvunwrap.
TIMEOUT, TIMEOUT_PER_FACE = 60.0, {"xatlas": 5e-3, "uvunwrap": 5e-5}
# Maximum time in seconds until an interrupt takes effect.
LONGEST_WAIT = 1.0
# This text is in the message of a uvunwrap thread that has panicked.
PANIC = b"panicked at"
# The minimum share of the texture that the charts must fill. If they fill less, margins fill most of the
# texture, and the result is rejected.
MIN_FILL = 0.05


# The prefix of the temporary folders, and the name of the file in each folder that the process keeps locked.
PREFIX, LOCK = "unwrap-", "lock"


# The process that `start_worker` has started.
_waiting: list[subprocess.Popen] = []


class UnwrapError(Exception):
    """Error for a library that fails on a mesh, takes too long or uses too little of the texture."""


def unwrap_with(
    library: str,
    positions: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    side: int,
    padding: int,
    timeout: float | None = None,
) -> tuple[Float[np.ndarray, "U 2"], Int[np.ndarray, "F 3"], int]:
    """Return uv, uv_faces and the number of charts. Faces that are counter-clockwise as seen from outside are
    counter-clockwise in uv.

    uv is in [0,1] with v upward.

    library: "xatlas" or "uvunwrap". timeout: in seconds, TIMEOUT + TIMEOUT_PER_FACE · faces by default.

    Raises UnwrapError if the library fails or the time limit is exceeded.
    """
    if timeout is None:
        timeout = TIMEOUT + TIMEOUT_PER_FACE[library] * len(faces)
    _remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, _locked(Path(name)):
        input_file, output_file = Path(name) / "in.npz", Path(name) / "out.npz"
        arrays = {"positions": positions.astype(np.float32), "faces": faces.astype(np.uint32)}
        np.savez(input_file, **arrays, side=side, padding=padding)
        _run(_take_worker(), [library, str(input_file), str(output_file)], timeout)
        with np.load(output_file) as record:
            uv, uv_faces = record["uv"], record["uv_faces"]
            charts, pages = int(record["charts"]), int(record["pages"])
    if pages != 1:
        raise UnwrapError(f"{pages} pages instead of one")
    a, b, c = (uv[uv_faces[:, corner]].astype(np.float64).T for corner in range(3))
    filled = np.abs((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]).sum() / 2
    if not filled >= MIN_FILL:
        raise UnwrapError(f"its {charts} charts fill {100 * filled:.1f} % of the texture")
    return uv, uv_faces, charts


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a temporary folder, so that other processes do not remove the folder.

    The lock file gets its final name only after it is locked, so that no other process can lock it first.
    """
    with try_lock(folder / f"{LOCK}.new"):
        (folder / f"{LOCK}.new").rename(folder / LOCK)
        yield


def _remove_leftovers() -> None:
    """Remove the temporary folders of killed processes, whose lock files are no longer locked."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if (folder / LOCK).exists() and (file := try_lock(folder / LOCK)) is not None:
                with file:
                    shutil.rmtree(folder, ignore_errors=True)


def start_worker() -> None:
    """Start the process of the next `unwrap_with`, because the start of Python and numpy takes 0.2 s.

    The process waits for its arguments. It ends if this process ends. If it cannot be started, `unwrap_with`
    tries again.
    """
    if _waiting and _waiting[0].poll() is not None:
        _waiting.clear()
    if not _waiting:
        with suppress(OSError):
            _waiting.append(_new_worker())


def _new_worker() -> subprocess.Popen:
    # -P prevents imports from the folder of the script, because modules in this folder have names that other
    # packages also use.
    command, pipe = [sys.executable, "-P", str(WORKER)], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)


def _take_worker() -> subprocess.Popen:
    start_worker()
    return _waiting.pop() if _waiting else _new_worker()


def _run(worker: subprocess.Popen, arguments: list[str], timeout: float) -> None:
    """Send the arguments to a worker and wait until it ends.

    Raises UnwrapError if it panics, fails or takes longer than `timeout` seconds.
    """
    try:
        with suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(arguments).encode() + b"\n")
            worker.stdin.flush()
        output = _output(worker, time.monotonic() + timeout)
        if output is None:
            raise UnwrapError(f"not finished after {timeout:.0f} s")
    finally:
        worker.kill()
        worker.wait()
        with suppress(BrokenPipeError):
            worker.stdin.close()
        worker.stdout.close()
    if worker.returncode != 0:
        raise UnwrapError(_reason(output.decode(errors="replace"), worker.returncode))


def _output(worker: subprocess.Popen, deadline: float) -> bytes | None:
    """Return the output of a worker after it has panicked or ended, or None at the deadline."""
    output = b""
    while PANIC not in output:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return None
        if select.select([worker.stdout], [], [], min(remaining, LONGEST_WAIT))[0]:
            some = os.read(worker.stdout.fileno(), 2**16)
            output += some
            if not some:
                # The worker has closed its output.
                with suppress(subprocess.TimeoutExpired):
                    worker.wait(max(deadline - time.monotonic(), 0))
                    return output
                return None
    return output


def _reason(text: str, code: int) -> str:
    """Return one line that describes the failure."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if PANIC.decode() in line:
            return "panic: " + " ".join(lines[number + 1 : number + 2])
    return lines[-1] if lines else f"exit code {code}"
