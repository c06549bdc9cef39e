"""Calls as CUDA graphs: launching a network's kernels one by one takes longer than a small batch needs to run
them.
"""

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# More shapes than a run has.
MOST_SHAPES = 4
WARM_UP_TURNS = 3

R = TypeVar("R")


class Recorder(Generic[R]):
    """Recordings of a function by the shapes of what it is given, for CUDA tensors.

    What the function reads besides (weights) has to stay where it is. Where capturing fails (said once) there
    is none, and the function itself is to be called: memory that is too short even so is its error, not ours.
    record: makes one from inputs and, where there is one, an earlier recording.
    """

    def __init__(self, record: Callable[[tuple[Tensor, ...], R | None], R]):
        self._record = record
        self.made: dict[tuple, R] = {}
        self._capture = True

    def __call__(self, *inputs: Tensor) -> R | None:
        """The recording of these shapes, made now if need be; None where there is none."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key in self.made or not self._capture or len(self.made) == MOST_SHAPES:
            return self.made.get(key)
        try:
            self.made[key] = self._record(inputs, next(iter(self.made.values()), None))
        except RuntimeError as error:
            logger.warning("no CUDA graph, going on without: %s", str(error).splitlines()[0])
            self._capture = False
        # Here the error and, with its frames, half of a recording's memory are let go.
        return self.made.get(key)


@dataclass(frozen=True)
class Recording:
    """A captured call: what it reads, what it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class Graphed:
    """`function` of tensors to one tensor, without gradients, on CUDA replayed for shapes seen before."""

    def __init__(self, function: Callable[..., Tensor]):
        self._function = function
        self.recordings: Recorder[Recording] = Recorder(partial(record, function))

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        if inputs[0].device.type != "cuda":
            return self._function(*inputs)
        # A process of several has a GPU of its own, which need not be the current one.
        with torch.cuda.device(inputs[0].device):
            recording = self.recordings(*inputs)
            if recording is None:
                return self._function(*inputs)
            for kept, given in zip(recording.inputs, inputs, strict=True):
                kept.copy_(given)
            recording.graph.replay()
            # The next replay writes to the same place.
            return recording.output.clone()


def record(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], earlier: Recording | None = None
) -> Recording:
    """Capture one call of `function`, in the memory of an earlier one if there is one: the two never run at
    the same time, and what they answer is copied."""
    kept = tuple(tensor.clone() for tensor in inputs)
    stream = settle(lambda: function(*kept))
    graph = torch.cuda.CUDAGraph()
    # torch's own stream for captures is one for all devices, that of the first capture.
    with torch.cuda.graph(graph, pool=earlier and earlier.graph.pool(), stream=stream):
        output = function(*kept)
    return Recording(graph, kept, output)


def settle(act: Callable[[], object]) -> torch.cuda.Stream:
    """Some turns on a new stream of the current device, for libraries to choose and compile; the stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_TURNS):
            act()
    torch.cuda.current_stream().wait_stream(stream)
    return stream


class Turn:
    """A replay whose gradient may still be asked for."""


@dataclass
class Pair:
    """A captured call and its captured gradient; the second reads what the first has left behind."""

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    x: Tensor
    y: Tensor
    pull: Tensor
    slope: Tensor
    last: Callable[[], Turn | None] = lambda: None

    @property
    def waits(self) -> bool:
        """Whether somebody holds an answer whose gradient has not been asked for."""
        return self.last() is not None

    def begin(self) -> Turn:
        turn = Turn()
        self.last = weakref.ref(turn)
        return turn

    def end(self, turn: Turn) -> None:
        assert self.last() is turn, "what the gradient needs is overwritten"
        self.last = lambda: None


class Replay(torch.autograd.Function):
    """A pair as one operation."""

    @staticmethod
    def forward(ctx, x, pair):
        ctx.pair, ctx.turn = pair, pair.begin()
        pair.x.copy_(x)
        pair.forward.replay()
        return pair.y.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, pull):
        ctx.pair.end(ctx.turn)
        with torch.cuda.device(pull.device):
            ctx.pair.pull.copy_(pull)
            ctx.pair.backward.replay()
            return ctx.pair.slope.clone(), None


class DifferentiableCUDAGraph:
    """`function` of a tensor to a tensor, with a gradient for its input, replayed on CUDA.

    The graphs hold all that the gradient needs for good, so only inputs of at most so many elements are
    replayed. A second call before the first one's gradient is not: what is left behind has one place.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], most_elements: int):
        self._function = function
        self._most = most_elements
        self.recordings: Recorder[Pair] = Recorder(lambda inputs, _: record_pair(function, *inputs))

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda" or x.numel() > self._most:
            return self._function(x)
        with torch.cuda.device(x.device):
            pair = self.recordings(x)
            return self._function(x) if pair is None or pair.waits else Replay.apply(x, pair)


@torch.enable_grad()
def record_pair(function: Callable[[Tensor], Tensor], x: Tensor) -> Pair:
    """Capture a call of `function` and the gradient of its input."""
    kept = x.detach().clone().requires_grad_()

    def both_ways() -> None:
        y = function(kept)
        torch.autograd.grad(y, kept, torch.ones_like(y))

    stream = settle(both_ways)
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(forward, stream=stream):
        y = function(kept)
    pull = torch.ones_like(y)
    with torch.cuda.graph(backward, pool=forward.pool(), stream=stream):
        (slope,) = torch.autograd.grad(y, kept, pull)
    return Pair(forward, backward, kept.detach(), y.detach(), pull, slope)
