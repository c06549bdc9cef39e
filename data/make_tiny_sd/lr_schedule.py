"""Progress of a training stage in time or steps, and the learning rate that depends on the progress."""

import math
import time
from dataclasses import dataclass, field


@dataclass
class StageSchedule:
    """Progress of a stage from `start` to 1. It reaches 1 after `steps` if given, otherwise after `seconds`.

    The learning rate depends on the progress, so the decay of the rate is always complete at the end of a
    stage.
    """

    seconds: float
    steps: int | None = None
    start: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    def progress(self, step: int) -> float:
        """Return the progress in [start, 1] after `step` steps of this run."""
        if self.steps is not None:
            share = step / self.steps
        else:
            share = (time.monotonic() - self._started) / max(self.seconds, 1e-3)
        return min(1.0, self.start + (1 - self.start) * share)


def cosine_learning_rate(progress: float, peak: float, warm_up: float = 0.03, floor: float = 0.01) -> float:
    """Return the learning rate: linear warm-up, then cosine decay to `floor` times the peak."""
    if progress < warm_up:
        return peak * max(progress / warm_up, 1e-3)
    decay = (progress - warm_up) / (1 - warm_up)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * decay)))
