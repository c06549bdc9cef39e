"""Signals of a run.

After SIGTERM, SIGINT or SIGHUP during training, all ranks finish the same step, save a checkpoint and exit
together. A child process receives SIGTERM when its parent ends, so that all processes end if the launcher is
killed.
"""

import ctypes
import logging
import signal
from collections.abc import Sequence
from typing import Self

logger = logging.getLogger(__name__)

# If ranks receive different signals, the first in this order counts. Schedulers send SIGTERM, and a closed
# terminal sends SIGHUP.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

PR_SET_PDEATHSIG = 1
# prctl is loaded when this module is imported. Loading it between fork and exec could cause a deadlock,
# because another thread may hold the lock of the loader.
PRCTL = ctypes.CDLL(None).prctl


def end_with_parent() -> None:
    """Configure the system to send SIGTERM to this process when its parent ends. Linux only."""
    PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


class SignalRecorder:
    """A context manager that records signals instead of ending the process.

    number: the last received signal, or None. count: the number of received signals. SIGHUP stays ignored
    under nohup.
    """

    def __init__(self, signals: Sequence[int]) -> None:
        self.number: int | None = None
        self.count = 0
        self._signals = signals

    def __enter__(self) -> Self:
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        handled = [number for number in self._signals if not (ignored and number == signal.SIGHUP)]
        self._previous = {number: signal.signal(number, self._record) for number in handled}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: object) -> None:
        self.count += 1
        self.number = number


class StopRequest(SignalRecorder):
    """Recorder of SIGNALS for the training loop. requested: the signal that stops all ranks, or None."""

    def __init__(self) -> None:
        super().__init__(SIGNALS)
        self.requested: int | None = None

    def flags(self) -> list[float]:
        """Return 1 for each of SIGNALS that this rank has received, else 0.

        The caller sums the flags over the ranks.
        """
        return [float(self.number == number) for number in SIGNALS]

    def decide(self, sums: Sequence[float]) -> None:
        """Set `requested` from the sums of `flags` over the ranks."""
        self.requested = next((number for number, count in zip(SIGNALS, sums, strict=True) if count), None)

    def exit_if_requested(self, step: int) -> None:
        """Raise SystemExit(128 + signal) if `requested` is set. step: for the log message."""
        if self.requested is not None:
            logger.info("stopped after step %d, saved; run the same command again to resume", step)
            raise SystemExit(128 + self.requested)


def die_on_interrupt() -> None:
    """Let Ctrl-C end the process immediately and without a traceback, until `raise_on_interrupt` is called.

    This is used during the imports, which take seconds. If SIGINT is ignored, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_on_interrupt() -> None:
    """Undo `die_on_interrupt`: Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
