"""A forward pass as one CUDA graph: launching the denoiser's kernels one by one takes longer than a small
batch needs to run them.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# More shapes than a run has; each graph keeps its own memory.
MOST_SHAPES = 4
WARM_UP_TURNS = 3


@dataclass(frozen=True)
class Recording:
    """A captured call: what it reads, what it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class Graphed:
    """`function` of CUDA tensors to one tensor, without gradients, replayed for every shape seen before.

    The answer lives in the graph's memory until the next call: copy what has to stay. On the CPU, and where
    capturing fails (said once), the function itself is called.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self._function = function
        self._recordings: dict[tuple, Recording] = {}
        self._capture = True

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        if not self._capture or inputs[0].device.type != "cuda":
            return self._function(*inputs)
        key = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs)
        if key not in self._recordings:
            if len(self._recordings) == MOST_SHAPES:
                return self._function(*inputs)
            try:
                self._recordings[key] = record(self._function, inputs)
            except RuntimeError as error:
                logger.warning("no CUDA graph, going on without: %s", str(error).splitlines()[0])
                self._capture = False
                return self._function(*inputs)
        recording = self._recordings[key]
        for kept, given in zip(recording.inputs, inputs, strict=True):
            kept.copy_(given)
        recording.graph.replay()
        return recording.output


def record(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Recording:
    """Capture one call of `function`, after some turns on a side stream that let its libraries settle."""
    kept = tuple(tensor.clone() for tensor in inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_TURNS):
            function(*kept)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(*kept)
    return Recording(graph, kept, output)
