"""Distances and winding numbers of points, computed by igl in this process or in another process.

igl holds Python's global lock, so a thread cannot compute them while this process continues. This file is
also the script of the other process. To start fast, it does not import torch.
"""

import ctypes
import io
import logging
import signal
import subprocess
import sys
import threading

import numpy as np

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
# The number of points from which another process is used. For fewer points, its start takes longer.
MANY_POINTS = 75_000


def squared_distance_and_winding(
    v_pos: np.ndarray, faces: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the squared distance to a mesh and the winding number, each [N] float64, for points [N,3].

    v_pos [V,3] float64, faces [F,3] int64, points [N,3] float64.
    """
    import igl

    tree = igl.AABB()
    tree.init(v_pos, faces)
    squared, _, _ = tree.squared_distance(v_pos, faces, points)
    return squared, igl.fast_winding_number(v_pos, faces, points)


class DistanceProcess:
    """A computation of `squared_distance_and_winding` in another process, which starts with this object."""

    def __init__(self, v_pos: np.ndarray, faces: np.ndarray, points: np.ndarray):
        self._arguments = v_pos, faces, points
        self._output: bytes | None = None
        self._thread: threading.Thread | None = None
        # -P prevents imports from the folder of the script.
        command, pipe = [sys.executable, "-P", __file__], subprocess.PIPE
        try:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.PIPE)
        except OSError as error:
            logger.debug("distances: the process cannot be started: %s", error)
            return
        # The thread transfers the data. It is a daemon, so it does not delay the end of this process.
        self._thread = threading.Thread(target=self._transfer, args=(process,), daemon=True)
        self._thread.start()

    def _transfer(self, process: subprocess.Popen) -> None:
        output, errors = process.communicate(_packed(*self._arguments))
        if process.returncode == 0:
            self._output = output
        else:
            logger.debug("distances: the process failed: %s", errors.decode(errors="replace").strip())

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Wait for the process and return its result. If it has failed, compute the result here."""
        if self._thread is not None:
            self._thread.join()
        if self._output is None:
            return squared_distance_and_winding(*self._arguments)
        squared, winding = _unpacked(self._output)
        return squared, winding


def _packed(*arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, *arrays)
    return buffer.getvalue()


def _unpacked(content: bytes) -> list[np.ndarray]:
    """Return the arrays of `_packed`."""
    with np.load(io.BytesIO(content)) as record:
        return [record[name] for name in record.files]


if __name__ == "__main__":
    if sys.platform == "linux":
        # After this call, Linux kills the process if the parent process is killed.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # An interrupt from the keyboard is handled by the parent process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.buffer.write(_packed(*squared_distance_and_winding(*_unpacked(sys.stdin.buffer.read()))))
