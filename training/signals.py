"""Signals of a run.

SIGTERM, SIGINT and SIGHUP during training: all ranks finish the same step, save a checkpoint and exit
together. A child process receives a signal when its parent ends, so that no process outlives a killed
launcher.
"""

import ctypes
import logging
import signal
from collections.abc import Sequence
from typing import Self

logger = logging.getLogger(__name__)

# In order of precedence: schedulers send SIGTERM, and a closed terminal sends SIGHUP.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

PR_SET_PDEATHSIG = 1
# Resolved at import: between fork and exec, another thread may hold the loader's lock.
PRCTL = ctypes.CDLL(None).prctl


def end_with_parent() -> None:
    """Have the system send SIGTERM to this process when its parent ends. Linux only."""
    PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


class SignalRecorder:
    """A context manager that records signals instead of ending the process.

    number: the last signal that arrived, or None. count: how many arrived. SIGHUP stays ignored under nohup.
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
    """SIGNALS during the training loop. requested: the signal that all ranks agree on, or None."""

    def __init__(self) -> None:
        super().__init__(SIGNALS)
        self.requested: int | None = None

    def flags(self) -> list[float]:
        """For each of SIGNALS, 1 if this rank received it; the ranks sum these."""
        return [float(self.number == number) for number in SIGNALS]

    def decide(self, sums: Sequence[float]) -> None:
        """Set `requested` from the sums of `flags` over the ranks."""
        self.requested = next((number for number, count in zip(SIGNALS, sums, strict=True) if count), None)

    def exit_if_requested(self, step: int) -> None:
        """Raise SystemExit(128 + signal) if a signal was received."""
        if self.requested is not None:
            logger.info("stopped after step %d, saved; run the same command again to resume", step)
            raise SystemExit(128 + self.requested)


def die_on_interrupt() -> None:
    """Ctrl-C ends the process at once and without a traceback, until `raise_on_interrupt`.

    Used during the imports, which take seconds. An ignored SIGINT stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_on_interrupt() -> None:
    """Ctrl-C raises KeyboardInterrupt again after `die_on_interrupt`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
