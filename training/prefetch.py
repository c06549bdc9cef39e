"""Random draws that are computed before they are needed."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Draw = TypeVar("Draw")


class Prefetcher(Generic[Draw]):
    """The random draws of steps, by (step, micro-batch).

    draw: a pure function of the two, so the results do not depend on when or how often it is called.
    """

    def __init__(self, draw: Callable[[int, int], Draw]):
        self._draw = draw
        self._ready: dict[tuple[int, int], Draw] = {}

    def next(self, step: int, micro_batch: int) -> Draw:
        """Returns the draw of a micro-batch and removes it from the prepared ones."""
        if (step, micro_batch) in self._ready:
            return self._ready.pop((step, micro_batch))
        return self._draw(step, micro_batch)

    def prepare(self, step: int, micro_batches: Iterable[int]) -> None:
        """Compute the draws of these micro-batches now, and discard all earlier prepared ones."""
        self._ready = {(step, number): self._draw(step, number) for number in micro_batches}
