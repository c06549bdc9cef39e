"""A forward pass as one CUDA graph: launching the denoiser's kernels one by one takes longer than a small
batch needs to run them.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# More shapes than a run has.
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

    What the function reads besides (weights) has to stay where it is. On the CPU, and where capturing fails
    (said once), the function itself is called: memory that is too short for both is its error, not ours.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self._function = function
        self._recordings: dict[tuple, Recording] = {}
        self._capture = True

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        if inputs[0].device.type != "cuda":
            return self._function(*inputs)
        # A process of several has a GPU of its own, which need not be the current one.
        with torch.cuda.device(inputs[0].device):
            recording = self._recording(inputs)
            if recording is None:
                return self._function(*inputs)
            for kept, given in zip(recording.inputs, inputs, strict=True):
                kept.copy_(given)
            recording.graph.replay()
            # The next replay writes to the same place.
            return recording.output.clone()

    def _recording(self, inputs: tuple[Tensor, ...]) -> Recording | None:
        """That of these shapes, made now if need be; None where there is none."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key in self._recordings or not self._capture or len(self._recordings) == MOST_SHAPES:
            return self._recordings.get(key)
        # One memory for all: they never run at the same time, and what they answer is copied.
        pool = next((made.graph.pool() for made in self._recordings.values()), None)
        try:
            self._recordings[key] = record(self._function, inputs, pool)
        except RuntimeError as error:
            logger.warning("no CUDA graph, going on without: %s", str(error).splitlines()[0])
            self._capture = False
        # Here the error and, with its frames, half of a recording's memory are let go.
        return self._recordings.get(key)


def record(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], pool: tuple[int, int] | None = None
) -> Recording:
    """Capture one call of `function`, after some turns on a side stream that let its libraries settle.

    pool: the memory of another graph, to be shared with it. Captures on the current device.
    """
    kept = tuple(tensor.clone() for tensor in inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_TURNS):
            function(*kept)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # torch's own stream for captures is one for all devices, that of the first capture.
    with torch.cuda.graph(graph, pool=pool, stream=side):
        output = function(*kept)
    return Recording(graph, kept, output)
