"""Random draws that are computed before they are needed."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Draw = TypeVar("Draw")


class Prefetcher(Generic[Draw]):
    """Computes and stores the random draws of (step, micro-batch) in advance.

    draw: a function that depends only on (step, micro-batch), so it may be called at any time.
    """

    def __init__(self, draw: Callable[[int, int], Draw]):
        self._draw = draw
        self._ready: dict[tuple[int, int], Draw] = {}

    def next(self, step: int, micro_batch: int) -> Draw:
        """Return the draw of a micro-batch and remove it from the prepared draws."""
        if (step, micro_batch) in self._ready:
            return self._ready.pop((step, micro_batch))
        return self._draw(step, micro_batch)

    def prepare(self, step: int, micro_batches: Iterable[int]) -> list[Draw]:
        """Compute and return the draws of these micro-batches. Discard all draws that were prepared
        earlier.
        """
        self._ready = {(step, number): self._draw(step, number) for number in micro_batches}
        return list(self._ready.values())
