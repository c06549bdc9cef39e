"""CUDA graphs for functions of tensors.

At small batch sizes, launching a network's kernels one by one takes longer than running them. A graph
launches all of them together.
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

# The maximum number of recorded input shapes per function. A run uses fewer shapes, so all of them are
# recorded.
MAX_SHAPES = 4
WARM_UP_CALLS = 3

R = TypeVar("R")


class GraphCache(Generic[R]):
    """A cache of the CUDA graphs of one function. The keys of the cache are the shapes and dtypes of the
    inputs.

    All other tensors that the function reads, such as weights, must keep their memory addresses, because a
    graph reads fixed addresses. If a capture fails, one warning is logged, no further capture is tried, and
    the caller must run the function eagerly. If the available memory is too small even for the eager call,
    this call raises an error.

    capture: a function of the inputs and an earlier recording (None for the first) that returns a recording.
    """

    def __init__(self, capture: Callable[[tuple[Tensor, ...], R | None], R]):
        self._capture = capture
        self.recordings: dict[tuple, R] = {}
        self._enabled = True

    def __call__(self, *inputs: Tensor) -> R | None:
        """Return the recording for the shapes of the inputs, or None if no graph can be captured. The first
        call with new shapes captures the graph.
        """
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key in self.recordings or not self._enabled or len(self.recordings) == MAX_SHAPES:
            return self.recordings.get(key)
        try:
            self.recordings[key] = self._capture(inputs, next(iter(self.recordings.values()), None))
        except RuntimeError as error:
            logger.warning("CUDA graphs are disabled, which is slower: %s", str(error).splitlines()[0])
            self._enabled = False
        # The error's stack frames keep the tensors of the failed capture in memory until the except block
        # ends. The return statement is after this block, so that the memory is free for the eager call.
        return self.recordings.get(key)


@dataclass(frozen=True)
class Recording:
    """A captured call of a function, with its input and output buffers."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class InferenceCUDAGraph:
    """A function from tensors to one tensor, without gradients. On CUDA, a call of the function replays a
    graph.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self._function = function
        self.cache: GraphCache[Recording] = GraphCache(partial(capture, function))

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        if inputs[0].device.type != "cuda":
            return self._function(*inputs)
        # With several processes, the GPU of this process may differ from the current device.
        with torch.cuda.device(inputs[0].device):
            recording = self.cache(*inputs)
            if recording is None:
                return self._function(*inputs)
            for static_input, value in zip(recording.inputs, inputs, strict=True):
                static_input.copy_(value)
            recording.graph.replay()
            # A copy is returned, because the next replay overwrites the output buffer.
            return recording.output.clone()


def capture(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], earlier: Recording | None = None
) -> Recording:
    """Capture one call of `function`.

    If an earlier recording is given, the new graph shares the memory pool of this recording. The sharing is
    safe because the two graphs never run at the same time and their outputs are copied.
    """
    static_inputs = tuple(tensor.clone() for tensor in inputs)
    stream = warm_up(lambda: function(*static_inputs))
    graph = torch.cuda.CUDAGraph()
    # The stream is passed because torch's default capture stream belongs to the device of the first capture,
    # which can be another device.
    with torch.cuda.graph(graph, pool=earlier and earlier.graph.pool(), stream=stream):
        output = function(*static_inputs)
    return Recording(graph, static_inputs, output)


def warm_up(function: Callable[[], object]) -> torch.cuda.Stream:
    """Run `function` several times on a new stream of the current device, and return the stream.

    In these calls, libraries select algorithms and compile kernels, which is not possible during a capture.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_CALLS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    return stream


class ReplayToken:
    """An object that exists as long as the backward replay for the output of a forward replay may still
    follow.
    """


@dataclass
class DifferentiableRecording:
    """A captured forward pass and its captured backward pass.

    The backward pass reads the activations that the forward pass stores.
    """

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    x: Tensor
    y: Tensor
    grad_output: Tensor
    grad_input: Tensor
    current_token: Callable[[], ReplayToken | None] = lambda: None

    @property
    def backward_pending(self) -> bool:
        """Return whether an output of the forward graph exists whose backward pass has not run yet."""
        return self.current_token() is not None

    def start_forward(self) -> ReplayToken:
        token = ReplayToken()
        self.current_token = weakref.ref(token)
        return token

    def finish_backward(self, token: ReplayToken) -> None:
        assert self.current_token() is token, "a later call has overwritten the saved activations"
        self.current_token = lambda: None


class ReplayFunction(torch.autograd.Function):
    """An autograd operation that replays a `DifferentiableRecording`."""

    @staticmethod
    def forward(ctx, x, recording):
        ctx.recording, ctx.token = recording, recording.start_forward()
        recording.x.copy_(x)
        recording.forward.replay()
        return recording.y.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        ctx.recording.finish_backward(ctx.token)
        with torch.cuda.device(grad_output.device):
            ctx.recording.grad_output.copy_(grad_output)
            ctx.recording.backward.replay()
            return ctx.recording.grad_input.clone(), None


class GivenGradient(torch.autograd.Function):
    """A scalar without a value whose gradient with respect to y is given.

    `torch.autograd.grad` imports sympy, which takes 0.2 s, if it is called with the gradient of its output.
    """

    @staticmethod
    def forward(ctx, y, gradient):
        ctx.gradient = gradient
        return y.new_empty(())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, _):
        return ctx.gradient, None


class DifferentiableCUDAGraph:
    """A function of one tensor that is differentiable with respect to this tensor. On CUDA, the function and
    its gradient are replayed as graphs.

    The graphs keep the activations permanently, so inputs of more than `max_elements` elements run eagerly.
    The graphs of an input shape store the activations of one call. A second call with this shape before the
    backward pass of the first call therefore also runs eagerly.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], max_elements: int):
        self._function = function
        self._max_elements = max_elements
        self.cache: GraphCache[DifferentiableRecording] = GraphCache(
            lambda inputs, _: capture_with_gradient(function, *inputs)
        )

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda" or x.numel() > self._max_elements:
            return self._function(x)
        with torch.cuda.device(x.device):
            recording = self.cache(x)
            if recording is None or recording.backward_pending:
                return self._function(x)
            return ReplayFunction.apply(x, recording)


@torch.enable_grad()
def capture_with_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> DifferentiableRecording:
    """Capture the forward pass of `function` and the gradient with respect to its input."""
    static_input = x.detach().clone().requires_grad_()

    def forward_and_backward() -> None:
        y = function(static_input)
        torch.autograd.grad(GivenGradient.apply(y, torch.ones_like(y)), static_input)

    stream = warm_up(forward_and_backward)
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(forward, stream=stream):
        y = function(static_input)
    grad_output = torch.ones_like(y)
    with torch.cuda.graph(backward, pool=forward.pool(), stream=stream):
        (grad_input,) = torch.autograd.grad(GivenGradient.apply(y, grad_output), static_input)
    return DifferentiableRecording(
        forward, backward, static_input.detach(), y.detach(), grad_output, grad_input
    )
