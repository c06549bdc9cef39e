"""Random numbers for the proportions and colours of objects. All come from one generator on the CPU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Option = TypeVar("Option")


@dataclass(frozen=True)
class Draw:
    """Random draws from one generator. Each call advances the generator."""

    generator: torch.Generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator, dtype=torch.float64).item()

    def vary(self, value: float, share: float = 0.1) -> float:
        """Return `value` times a uniform random factor in [1 − share, 1 + share]."""
        return value * self.uniform(1.0 - share, 1.0 + share)

    def integer(self, low: int, high: int) -> int:
        """Return a uniform random integer from low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator).item())

    def chance(self, probability: float) -> bool:
        return self.uniform(0.0, 1.0) < probability

    def usually(self, common: Option, others: Sequence[Option], probability: float = 0.5) -> Option:
        """Return `common` with the given probability, otherwise one of `others`."""
        other = others[self.integer(0, len(others) - 1)]
        return common if self.chance(probability) else other

    def angle(self) -> float:
        return self.uniform(-math.pi, math.pi)
