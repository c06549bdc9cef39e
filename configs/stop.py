"""SIGINT and SIGTERM during the optimisation: all ranks finish the same step, save, and leave together."""

import logging
import signal
from collections.abc import Sequence

logger = logging.getLogger(__name__)

# SIGTERM counts first: it is what schedulers send.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context manager: within it a signal is only noted. `requested` is the one that all ranks agree on."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._noted: int | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self._noted = number

    def votes(self) -> list[float]:
        """For each of SIGNALS whether it came here; the ranks add theirs up."""
        return [float(self._noted == number) for number in SIGNALS]

    def decide(self, votes: Sequence[float]) -> None:
        """Takes note of what all ranks have got together."""
        self.requested = next((number for number, count in zip(SIGNALS, votes, strict=True) if count), None)

    def leave_if_requested(self, step: int) -> None:
        if self.requested is not None:
            logger.info("stopped after step %d, saved; run the same command again to resume", step)
            raise SystemExit(128 + self.requested)
