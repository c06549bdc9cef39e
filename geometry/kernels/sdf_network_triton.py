"""The network's signed distances without a gradient, in one Triton kernel: no layer goes through memory.

The matrix products run on tensor cores in three TF32 passes, which keeps about the precision of float32.
"""

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from triton import language as tl

BLOCK = 128


@triton.jit
def _layer(values, weights, width, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr):
    """ReLU of values · weightsᵀ; weights [OUTPUTS, width], zero from there to INPUTS."""
    column = tl.arange(0, INPUTS)[:, None]
    place = weights + tl.arange(0, OUTPUTS)[None, :] * width + column
    matrix = tl.load(place, mask=column < width, other=0.0)
    return tl.maximum(tl.dot(values, matrix, input_precision="tf32x3"), 0.0)


@triton.jit
def _distances(
    encoded,
    first,
    second,
    last,
    out,
    count,
    width,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, INPUTS)[None, :]
    there = (index < count)[:, None] & (column < width)
    values = tl.load(encoded + index.to(tl.int64)[:, None] * width + column, mask=there, other=0.0)
    values = _layer(values, first, width, INPUTS, HIDDEN)
    values = _layer(values, second, HIDDEN, HIDDEN, HIDDEN)
    values *= tl.load(last + tl.arange(0, HIDDEN))[None, :]
    tl.store(out + index, tl.sum(values, 1), mask=index < count)


def can_run(first: Float[Tensor, "H W"]) -> bool:
    """Whether the kernel can do these sizes: it wants powers of two, and pads the encoding's width itself."""
    hidden = len(first)
    return first.dtype == torch.float32 and hidden >= 16 and hidden & (hidden - 1) == 0


def distances(
    encoded: Float[Tensor, "N W"],
    first: Float[Tensor, "H W"],
    second: Float[Tensor, "H H"],
    last: Float[Tensor, "O H"],
) -> Float[Tensor, " N"]:
    """The first output of last · relu(second · relu(first · encoded)) for every row; no gradient."""
    count, width = encoded.shape
    out = encoded.new_empty(count)
    if count:
        arguments = (tensor.detach().contiguous() for tensor in (encoded, first, second, last))
        sizes = {"INPUTS": max(16, triton.next_power_of_2(width)), "HIDDEN": len(first), "BLOCK": BLOCK}
        with torch.cuda.device_of(out):
            _distances[(triton.cdiv(count, BLOCK),)](*arguments, out, count, width, **sizes)
    return out
