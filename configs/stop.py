"""Signals that are noted in place of ending the process.

SIGINT and SIGTERM during the optimisation: all ranks finish the same step, save, and leave together.
"""

import logging
import signal
from collections.abc import Sequence
from typing import Self

logger = logging.getLogger(__name__)

# SIGTERM counts first: it is what schedulers send.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Noted:
    """A context manager within which these signals are only noted: the last one, and how many came."""

    def __init__(self, signals: Sequence[int]) -> None:
        self.number: int | None = None
        self.times = 0
        self._signals = signals

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.times += 1
        self.number = number


class StopRequest(Noted):
    """SIGNALS during the loop. `requested` is the one that all ranks agree on."""

    def __init__(self) -> None:
        super().__init__(SIGNALS)
        self.requested: int | None = None

    def votes(self) -> list[float]:
        """For each of SIGNALS whether it came here; the ranks add theirs up."""
        return [float(self.number == number) for number in SIGNALS]

    def decide(self, votes: Sequence[float]) -> None:
        """Takes note of what all ranks have got together."""
        self.requested = next((number for number, count in zip(SIGNALS, votes, strict=True) if count), None)

    def leave_if_requested(self, step: int) -> None:
        if self.requested is not None:
            logger.info("stopped after step %d, saved; run the same command again to resume", step)
            raise SystemExit(128 + self.requested)
