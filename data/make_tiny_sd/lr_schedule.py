"""Progress of a training stage, by time or by steps, and the learning rate that depends on it."""

import math
import time
from dataclasses import dataclass, field


@dataclass
class StageSchedule:
    """Progress of a stage from `start` to 1, which is reached after `seconds`, or after `steps` if given.

    Learning rates depend on the progress, so the schedule is always complete at the end of a stage.
    """

    seconds: float
    steps: int | None = None
    start: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    def progress(self, step: int) -> float:
        """Progress in [start, 1] after `step` steps of this run."""
        if self.steps is not None:
            share = step / self.steps
        else:
            share = (time.monotonic() - self._started) / max(self.seconds, 1e-3)
        return min(1.0, self.start + (1 - self.start) * share)


def cosine_learning_rate(progress: float, peak: float, warm_up: float = 0.03, floor: float = 0.01) -> float:
    """Learning rate at this progress: linear warm-up, then cosine decay to `floor` times the peak."""
    if progress < warm_up:
        return peak * max(progress / warm_up, 1e-3)
    decay = (progress - warm_up) / (1 - warm_up)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * decay)))
