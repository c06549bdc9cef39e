"""CUDA graphs for functions of tensors.

At small batch sizes, launching a network's kernels one by one takes longer than running them.
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

# The maximum number of recorded input shapes per function; a run uses fewer.
MOST_SHAPES = 4
WARM_UP_TURNS = 3

R = TypeVar("R")


class Recorder(Generic[R]):
    """A cache of recordings of one function, by the shapes and dtypes of its CUDA inputs.

    All other tensors that the function reads, such as weights, must keep their memory addresses. If a capture
    fails, one warning is logged, no further capture is tried, and the caller runs the function eagerly. If
    memory is insufficient for the eager call too, that call raises the error.

    record: makes a recording from the inputs and an earlier recording (None for the first).
    """

    def __init__(self, record: Callable[[tuple[Tensor, ...], R | None], R]):
        self._record = record
        self.made: dict[tuple, R] = {}
        self._capture = True

    def __call__(self, *inputs: Tensor) -> R | None:
        """The recording for the shapes of the inputs, captured at the first call; None if there is none."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key in self.made or not self._capture or len(self.made) == MOST_SHAPES:
            return self.made.get(key)
        try:
            self.made[key] = self._record(inputs, next(iter(self.made.values()), None))
        except RuntimeError as error:
            logger.warning("no CUDA graph, going on without: %s", str(error).splitlines()[0])
            self._capture = False
        # At this point the error is freed. Its stack frames hold the tensors of the failed capture.
        return self.made.get(key)


@dataclass(frozen=True)
class Recording:
    """A captured call with its input and output buffers."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class Graphed:
    """`function` of tensors that returns one tensor, without gradients. On CUDA it is replayed as a graph."""

    def __init__(self, function: Callable[..., Tensor]):
        self._function = function
        self.recordings: Recorder[Recording] = Recorder(partial(record, function))

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        if inputs[0].device.type != "cuda":
            return self._function(*inputs)
        # With several processes, the GPU of this process may differ from the current device.
        with torch.cuda.device(inputs[0].device):
            recording = self.recordings(*inputs)
            if recording is None:
                return self._function(*inputs)
            for kept, given in zip(recording.inputs, inputs, strict=True):
                kept.copy_(given)
            recording.graph.replay()
            # The next replay overwrites the output buffer.
            return recording.output.clone()


def record(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], earlier: Recording | None = None
) -> Recording:
    """Capture one call of `function`.

    The graph shares the memory pool of the earlier recording, if given. This is safe because the two graphs
    never run at the same time and their outputs are copied.
    """
    kept = tuple(tensor.clone() for tensor in inputs)
    stream = settle(lambda: function(*kept))
    graph = torch.cuda.CUDAGraph()
    # torch's default capture stream belongs to the device of the first capture, so a stream is passed.
    with torch.cuda.graph(graph, pool=earlier and earlier.graph.pool(), stream=stream):
        output = function(*kept)
    return Recording(graph, kept, output)


def settle(act: Callable[[], object]) -> torch.cuda.Stream:
    """Run `act` several times on a new stream of the current device, and return the stream.

    In these calls, libraries select algorithms and compile kernels, which is not possible during a capture.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_TURNS):
            act()
    torch.cuda.current_stream().wait_stream(stream)
    return stream


class Turn:
    """A token for one forward replay. It is alive while the backward replay may still follow."""


@dataclass
class Pair:
    """A captured forward pass and its captured backward pass.

    The backward pass reads the activations that the forward pass stores.
    """

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    x: Tensor
    y: Tensor
    pull: Tensor
    slope: Tensor
    last: Callable[[], Turn | None] = lambda: None

    @property
    def waits(self) -> bool:
        """Whether an output exists whose backward pass has not run yet."""
        return self.last() is not None

    def begin(self) -> Turn:
        turn = Turn()
        self.last = weakref.ref(turn)
        return turn

    def end(self, turn: Turn) -> None:
        assert self.last() is turn, "what the gradient needs is overwritten"
        self.last = lambda: None


class Replay(torch.autograd.Function):
    """A `Pair` as an autograd operation."""

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
    """`function` of one tensor, with a gradient for its input. On CUDA it is replayed as a graph.

    The graphs keep the activations permanently, so inputs of more than `most_elements` elements run eagerly.
    There is one activation buffer, so a call before the previous call's backward pass also runs eagerly.
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
    """Capture the forward pass of `function` and the gradient on its input."""
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
