"""The MLP of the SDF network in one fused Triton kernel. There is no backward pass.

The matrix products use tensor cores with three TF32 passes. The precision is about that of float32.
"""

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from triton import language as tl

BLOCK = 128


@triton.jit
def _layer(values, weights, width, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr):
    """Return ReLU(values · weightsᵀ). weights [OUTPUTS,width] is padded with zeros to INPUTS columns."""
    column = tl.arange(0, INPUTS)[:, None]
    pointer = weights + tl.arange(0, OUTPUTS)[None, :] * width + column
    matrix = tl.load(pointer, mask=column < width, other=0.0)
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
    mask = (index < count)[:, None] & (column < width)
    values = tl.load(encoded + index.to(tl.int64)[:, None] * width + column, mask=mask, other=0.0)
    values = _layer(values, first, width, INPUTS, HIDDEN)
    values = _layer(values, second, HIDDEN, HIDDEN, HIDDEN)
    values *= tl.load(last + tl.arange(0, HIDDEN))[None, :]
    tl.store(out + index, tl.sum(values, 1), mask=index < count)


def can_run(first: Float[Tensor, "H W"]) -> bool:
    """Return whether the kernel supports these sizes.

    The hidden width must be a power of two. The encoding may have any width, because it is padded.
    """
    hidden = len(first)
    return first.dtype == torch.float32 and hidden >= 16 and hidden & (hidden - 1) == 0


def distances(
    encoded: Float[Tensor, "N W"],
    first: Float[Tensor, "H W"],
    second: Float[Tensor, "H H"],
    last: Float[Tensor, "O H"],
) -> Float[Tensor, " N"]:
    """Return the first output of last · relu(second · relu(first · encoded)) for each row, without
    gradient.
    """
    count, width = encoded.shape
    out = encoded.new_empty(count)
    if count:
        arguments = (tensor.detach().contiguous() for tensor in (encoded, first, second, last))
        sizes = {"INPUTS": max(16, triton.next_power_of_2(width)), "HIDDEN": len(first), "BLOCK": BLOCK}
        with torch.cuda.device_of(out):
            _distances[(triton.cdiv(count, BLOCK),)](*arguments, out, count, width, **sizes)
    return out
