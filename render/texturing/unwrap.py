"""xatlas and uvunwrap, held to a time: each runs in a process that is ended when it takes too long.

On torn surfaces uvunwrap has been seen to panic in one of its threads and then to wait for that thread for
ever, and a thread cannot be ended.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

WORKER = Path(__file__).with_name("unwrap_worker.py")
# Seconds that an unwrapping may take, and seconds a face on top: several times what was measured on two
# cores (20 k faces with xatlas 6.5 s, 199 k 161 s; with uvunwrap 0.6 s and 6.9 s), since the same mesh is to
# be unwrapped in the same way on a busy machine.
TIMEOUT, TIMEOUT_PER_FACE = 60.0, {"xatlas": 5e-3, "uvunwrap": 5e-5}
# A thread of uvunwrap that has panicked says so, and the others wait for it.
PANIC = b"panicked at"
# Charts that fill less of the texture than this are not worth baking into: margins took the rest.
MIN_FILL = 0.05


class UnwrapError(Exception):
    """A library gave up on a mesh, took too long, or did not fit it well into one texture."""


def unwrap_with(
    library: str,
    positions: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    side: int,
    padding: int,
    timeout: float | None = None,
) -> tuple[Float[np.ndarray, "U 2"], Int[np.ndarray, "F 3"], int]:
    """(uv, uv_faces, charts): uv in [0,1] with v upward; faces that were counter-clockwise are so there.

    library: "xatlas" or "uvunwrap". timeout: seconds, by default what TIMEOUT says. Raises UnwrapError.
    """
    if timeout is None:
        timeout = TIMEOUT + TIMEOUT_PER_FACE[library] * len(faces)
    with tempfile.TemporaryDirectory(prefix="unwrap-") as name:
        given, answer, errors = (Path(name) / file for file in ("in.npz", "out.npz", "errors.txt"))
        arrays = {"positions": positions.astype(np.float32), "faces": faces.astype(np.uint32)}
        np.savez(given, **arrays, side=side, padding=padding)
        # -P: the folder of the script, which is full of modules with common names, is not searched.
        _run([sys.executable, "-P", str(WORKER), library, str(given), str(answer)], errors, timeout)
        with np.load(answer) as record:
            uv, uv_faces = record["uv"], record["uv_faces"]
            charts, pages = int(record["charts"]), int(record["pages"])
    if pages != 1:
        raise UnwrapError(f"{pages} pages instead of one")
    a, b, c = (uv[uv_faces[:, corner]].astype(np.float64).T for corner in range(3))
    filled = np.abs((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]).sum() / 2
    if not filled >= MIN_FILL:
        raise UnwrapError(f"its {charts} charts fill {100 * filled:.1f} % of the texture")
    return uv, uv_faces, charts


def _run(command: list[str], errors: Path, timeout: float) -> None:
    """Runs a command to its end, which comes after `timeout` seconds or a panic at the latest."""
    with errors.open("wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    deadline = time.monotonic() + timeout
    try:
        while process.poll() is None:
            if PANIC in errors.read_bytes():
                break
            if time.monotonic() > deadline:
                raise UnwrapError(f"not done after {timeout:.0f} s")
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise UnwrapError(_reason(errors.read_text(errors="replace"), process.returncode))


def _reason(text: str, code: int) -> str:
    """What went wrong, in a line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if PANIC.decode() in line:
            return "a panic: " + " ".join(lines[number + 1 : number + 2])
    return lines[-1] if lines else f"exit code {code}"
