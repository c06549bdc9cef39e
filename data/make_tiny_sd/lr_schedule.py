"""How far a stage of the training is: by the clock on a real run, by steps in a test."""

import math
import time
from dataclasses import dataclass, field


@dataclass
class StageSchedule:
    """Progress from `start` towards 1, reached after `seconds` or, where given, `steps`.

    Learning rates follow progress, so a stage always ends with its schedule complete.
    """

    seconds: float
    steps: int | None = None
    start: float = 0.0
    _begun: float = field(default_factory=time.monotonic)

    def progress(self, step: int) -> float:
        """In [start, 1] after `step` steps of this run."""
        if self.steps is not None:
            share = step / self.steps
        else:
            share = (time.monotonic() - self._begun) / max(self.seconds, 1e-3)
        return min(1.0, self.start + (1 - self.start) * share)


def cosine_learning_rate(progress: float, peak: float, warm_up: float = 0.03, floor: float = 0.01) -> float:
    """Learning rate at this progress: linear warm-up, then half a cosine down to `floor` of the peak."""
    if progress < warm_up:
        return peak * max(progress / warm_up, 1e-3)
    fall = (progress - warm_up) / (1 - warm_up)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fall)))
