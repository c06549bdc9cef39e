"""Signals that are recorded instead of ending the process.

SIGINT and SIGTERM during training: all ranks finish the same step, save a checkpoint and exit together.
"""

import logging
import signal
from collections.abc import Sequence
from typing import Self

logger = logging.getLogger(__name__)

# SIGTERM takes precedence: schedulers send it.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalRecorder:
    """A context manager that records the last of the given signals and how many arrived."""

    def __init__(self, signals: Sequence[int]) -> None:
        self.number: int | None = None
        self.count = 0
        self._signals = signals

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._record) for number in self._signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: object) -> None:
        self.count += 1
        self.number = number


class StopRequest(SignalRecorder):
    """SIGNALS during the training loop. `requested` is the signal that all ranks agree on."""

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
