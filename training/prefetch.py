"""Random draws that are made before they are asked for."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

D = TypeVar("D")


class Prefetcher(Generic[D]):
    """What the shares of steps draw, by (step, share).

    draw is a pure function of the two, so it makes no difference when, or how often, it is called.
    """

    def __init__(self, draw: Callable[[int, int], D]):
        self._draw = draw
        self._ready: dict[tuple[int, int], D] = {}

    def next(self, step: int, share: int) -> D:
        """That of a share, once: it is not kept."""
        if (step, share) in self._ready:
            return self._ready.pop((step, share))
        return self._draw(step, share)

    def prepare(self, step: int, shares: Iterable[int]) -> None:
        """Draw now for these shares of a step; what was prepared for others is let go."""
        self._ready = {(step, share): self._draw(step, share) for share in shares}
