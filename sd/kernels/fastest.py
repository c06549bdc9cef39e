"""The choice between functions with equal results, by measurement on the first inputs of each shape."""

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Another function than the default is chosen only if it takes less than this fraction of the default's time,
# so that noise does not change the choice between runs.
MARGIN = 0.97
# The largest accepted relative error (in the Euclidean norm) between a function and the default. It is above
# the rounding of half precision.
TOLERANCE = 0.01
REPEATS, CALLS = 3, 5


class Fastest:
    """The fastest of several functions of tensors for the given input shapes.

    A function that raises an error, or whose result differs from that of the default, is not chosen. While a
    CUDA graph is captured, nothing can be measured, so unknown shapes use the default.
    """

    def __init__(self, name: str, candidates: Mapping[str, Callable[..., Tensor]]):
        """name: for the log. candidates: the functions by name. The first is the default."""
        self.name, self.candidates = name, dict(candidates)
        self.default = next(iter(self.candidates))
        self.choices: dict[tuple, str] = {}
        # The milliseconds of every usable function, for each key of `choices`.
        self.times: dict[tuple, dict[str, float]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs)
        if key not in self.choices and not is_capturing(inputs[0]):
            self.times[key] = self._measure(inputs)
            self.choices[key] = self._fastest(self.times[key])
        return self.candidates[self.choices.get(key, self.default)](*inputs)

    def _measure(self, inputs: tuple[Tensor, ...]) -> dict[str, float]:
        expected = self.candidates[self.default](*inputs).float()
        times = {}
        for name, function in self.candidates.items():
            try:
                error = (function(*inputs).float() - expected).norm()
                if not error <= TOLERANCE * expected.norm():
                    logger.warning("prior: %s of %s is wrong and is not used", name, self.name)
                    continue
                times[name] = milliseconds(lambda function=function: function(*inputs), inputs[0].device)
            except torch.OutOfMemoryError:
                raise
            # Libraries and compilers raise errors of many types for shapes that they do not support.
            except Exception as error:
                logger.debug("prior: %s of %s cannot run: %s", name, self.name, error)
        return times

    def _fastest(self, times: dict[str, float]) -> str:
        best = min(times, key=times.__getitem__, default=self.default)
        return best if times.get(best, 0.0) < MARGIN * times.get(self.default, 0.0) else self.default


def is_capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the time of one call: the minimum over several repeats of several calls."""
    if device.type != "cuda":
        return float("inf")
    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(CALLS):
            function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / CALLS)
    return min(times)
