"""The MLP of the SDF network in fused Triton kernels.

The matrix products run on tensor cores in three TF32 passes, which gives about float32 precision. The
backward pass recomputes the hidden layers. Each program of this pass writes a separate partial sum of the
weight gradients, so the result does not depend on the order in which the programs run.
"""

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import language as tl

BLOCK = 128
# The matrix product needs at least 16 columns, so the outputs of the last layer are padded to 16.
PADDED_OUTPUTS = 16
# Rows per step of the backward pass. The matrix product needs at least 16 rows. More rows need more registers
# per program, which makes the pass slower.
BACKWARD_BLOCK = 16
# Number of programs of the backward pass, each of which processes several blocks. The number is 2 · 132,
# because an H100 runs two programs on each of its 132 multiprocessors.
BACKWARD_PROGRAMS = 264


@triton.jit
def _product(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _matrix(weights, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return weights [rows,width], padded with zeros to [ROWS,COLUMNS]."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    return tl.load(weights + row * width + column, mask=(row < rows) & (column < width), other=0.0)


@triton.jit
def _load_rows(values, index, count, width, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)[None, :]
    mask = (index < count)[:, None] & (column < width)
    return tl.load(values + index.to(tl.int64)[:, None] * width + column, mask=mask, other=0.0)


@triton.jit
def _store_rows(values, rows, index, count, width, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)[None, :]
    mask = (index < count)[:, None] & (column < width)
    tl.store(values + index.to(tl.int64)[:, None] * width + column, rows, mask=mask)


@triton.jit
def _hidden(values, first, second):
    """Return both hidden layers."""
    one = tl.maximum(_product(values, tl.trans(first)), 0.0)
    return one, tl.maximum(_product(one, tl.trans(second)), 0.0)


@triton.jit(do_not_specialize=["count"])
def _distances(
    encoded, first, second, last, out, count, width,
    INPUTS: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = _load_rows(encoded, index, count, width, INPUTS)
    first = _matrix(first, HIDDEN, width, HIDDEN, INPUTS)
    second = _matrix(second, HIDDEN, HIDDEN, HIDDEN, HIDDEN)
    _, values = _hidden(values, first, second)
    values *= tl.load(last + tl.arange(0, HIDDEN))[None, :]
    tl.store(out + index, tl.sum(values, 1), mask=index < count)


@triton.jit(do_not_specialize=["count"])
def _forward(
    encoded, first, second, last, out, count, width, outputs,
    INPUTS: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = _load_rows(encoded, index, count, width, INPUTS)
    first = _matrix(first, HIDDEN, width, HIDDEN, INPUTS)
    second = _matrix(second, HIDDEN, HIDDEN, HIDDEN, HIDDEN)
    last = _matrix(last, outputs, HIDDEN, OUTPUTS, HIDDEN)
    _, values = _hidden(values, first, second)
    _store_rows(out, _product(values, tl.trans(last)), index, count, outputs, OUTPUTS)


@triton.jit(do_not_specialize=["count"])
def _backward(
    encoded, first, second, last, grad_out, grad_encoded, grad_weights, count, width, outputs,
    INPUTS: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write grad_encoded [N,width], and one row of grad_weights per program.

    A row contains the program's share of the gradients of first [HIDDEN,width], second [HIDDEN,HIDDEN] and
    last [outputs,HIDDEN].
    """
    program = tl.program_id(0)
    first = _matrix(first, HIDDEN, width, HIDDEN, INPUTS)
    second = _matrix(second, HIDDEN, HIDDEN, HIDDEN, HIDDEN)
    last = _matrix(last, outputs, HIDDEN, OUTPUTS, HIDDEN)
    sum_first = tl.zeros([HIDDEN, INPUTS], tl.float32)
    sum_second = tl.zeros([HIDDEN, HIDDEN], tl.float32)
    sum_last = tl.zeros([OUTPUTS, HIDDEN], tl.float32)
    for begin in range(program * BLOCK, count, tl.num_programs(0) * BLOCK):
        index = begin + tl.arange(0, BLOCK)
        values = _load_rows(encoded, index, count, width, INPUTS)
        one, two = _hidden(values, first, second)
        grad = _load_rows(grad_out, index, count, outputs, OUTPUTS)
        sum_last += _product(tl.trans(grad), two)
        grad = tl.where(two > 0, _product(grad, last), 0.0)
        sum_second += _product(tl.trans(grad), one)
        grad = tl.where(one > 0, _product(grad, second), 0.0)
        sum_first += _product(tl.trans(grad), values)
        _store_rows(grad_encoded, _product(grad, first), index, count, width, INPUTS)
    row = tl.arange(0, HIDDEN)
    grad_first = grad_weights + program * HIDDEN * (width + HIDDEN + outputs)
    grad_second = grad_first + HIDDEN * width
    _store_rows(grad_first, sum_first, row, HIDDEN, width, INPUTS)
    _store_rows(grad_second, sum_second, row, HIDDEN, HIDDEN, HIDDEN)
    row = tl.arange(0, OUTPUTS)
    _store_rows(grad_second + HIDDEN * HIDDEN, sum_last, row, outputs, HIDDEN, HIDDEN)


def can_run(first: Float[Tensor, "H W"], second: Float[Tensor, "H H"], last: Float[Tensor, "O H"]) -> bool:
    """Return whether the kernels support these sizes.

    The hidden width must be a power of two and at least 16. The encoding may have any width, because it is
    padded.
    """
    hidden = len(first)
    power_of_two = hidden >= 16 and hidden & (hidden - 1) == 0
    return first.dtype == torch.float32 and power_of_two and len(last) <= PADDED_OUTPUTS


def _sizes(width: int, hidden: int, block: int = BLOCK) -> dict[str, int]:
    return {"INPUTS": max(16, triton.next_power_of_2(width)), "HIDDEN": hidden, "BLOCK": block}


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
        with torch.cuda.device_of(out):
            _distances[(triton.cdiv(count, BLOCK),)](
                *arguments, out, count, width, **_sizes(width, len(first))
            )
    return out


def mlp(
    encoded: Float[Tensor, "N W"],
    first: Float[Tensor, "H W"],
    second: Float[Tensor, "H H"],
    last: Float[Tensor, "O H"],
) -> Float[Tensor, "N O"]:
    """Return last · relu(second · relu(first · encoded)) for every row. The result has gradients for all
    inputs.
    """
    return _Mlp.apply(encoded, first, second, last)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        encoded, first, second, last = inputs = [tensor.contiguous() for tensor in inputs]
        ctx.save_for_backward(*inputs)
        (count, width), outputs = encoded.shape, len(last)
        out = encoded.new_empty(count, outputs)
        if count:
            with torch.cuda.device_of(out):
                _forward[(triton.cdiv(count, BLOCK),)](
                    *inputs, out, count, width, outputs, OUTPUTS=PADDED_OUTPUTS, **_sizes(width, len(first))
                )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        inputs = encoded, first, second, last = ctx.saved_tensors
        (count, width), outputs = encoded.shape, len(last)
        programs = min(triton.cdiv(count, BACKWARD_BLOCK), BACKWARD_PROGRAMS)
        grad_encoded = torch.empty_like(encoded)
        weights = first, second, last
        # Each program writes one row, so that one reduction sums the gradients of all weights.
        sums = first.new_empty(programs, sum(weight.numel() for weight in weights))
        if count:
            with torch.cuda.device_of(encoded):
                _backward[(programs,)](
                    *inputs, grad_out.contiguous(), grad_encoded, sums, count, width, outputs,
                    OUTPUTS=PADDED_OUTPUTS, **_sizes(width, len(first), BACKWARD_BLOCK),
                )  # fmt: skip
        grads = sums.sum(0).split([weight.numel() for weight in weights])
        return grad_encoded, *(grad.view_as(weight) for grad, weight in zip(grads, weights, strict=True))
