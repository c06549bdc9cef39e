"""A linear layer and GEGLU in one Triton kernel.

The linear layer's output has 8 times as many channels as its input. The kernel never writes it to memory.
"""

from functools import partial

import torch
import triton
from torch import Tensor
from torch.nn import functional as F
from triton import language as tl

from sd.kernels.fastest import Fastest
from sd.kernels.pointwise_triton import geglu
from sd.kernels.triton_math import gelu

# Number of row blocks whose programs run next to each other, so that they share the weights in the cache.
GROUP = 8
# Tile sizes (rows, output channels, input channels), warps and stages of the software pipeline.
LARGE, SMALL = (128, 128, 64, 8, 3), (128, 64, 64, 4, 3)


@triton.jit(do_not_specialize=["M"])
def _gated_linear(
    x, weight, bias, y, M, N, K,
    EXACT: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """x: [M, K]. weight: [2N, K], first the N rows of the value, then those of the gate. y: [M, N]. EXACT:
    whether N and K are multiples of the tile.
    """
    program, row_blocks, column_blocks = tl.program_id(0), tl.cdiv(M, ROWS), tl.cdiv(N, COLUMNS)
    first_block = program // (GROUP * column_blocks) * GROUP
    blocks_in_group = tl.minimum(row_blocks - first_block, GROUP)
    row_block = first_block + program % (GROUP * column_blocks) % blocks_in_group
    column_block = program % (GROUP * column_blocks) // blocks_in_group
    row = row_block * ROWS + tl.arange(0, ROWS)
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    # Rows and columns outside the output repeat others. They are not stored.
    x += (row % M).to(tl.int64)[:, None] * K + depth[None, :]
    weight_column = column if EXACT else column % N
    weight += weight_column[None, :] * K + depth[:, None]
    value = tl.zeros([ROWS, COLUMNS], tl.float32)
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, K, DEPTH):
        if EXACT:
            x_tile = tl.load(x + start)
            value_tile = tl.load(weight + start)
            gate_tile = tl.load(weight + start + N * K)
        else:
            mask = start + depth < K
            x_tile = tl.load(x + start, mask=mask[None, :], other=0.0)
            value_tile = tl.load(weight + start, mask=mask[:, None], other=0.0)
            gate_tile = tl.load(weight + start + N * K, mask=mask[:, None], other=0.0)
        value = tl.dot(x_tile, value_tile, value, input_precision="ieee")
        gate = tl.dot(x_tile, gate_tile, gate, input_precision="ieee")
    value += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(bias + N + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    value = value * gelu(gate)
    mask = (row < M)[:, None] & (column < N)[None, :]
    offsets = row.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=mask)


def fused_gated_linear(tile: tuple[int, ...], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `sd.kernels.reference.gated_linear`. The result is not differentiable. tile: see LARGE."""
    assert not (x.requires_grad and torch.is_grad_enabled())
    x, weight = x.contiguous(), weight.contiguous()
    rows, columns, depth, warps, stages = tile
    inner, channels = len(weight) // 2, x.shape[-1]
    y = x.new_empty(*x.shape[:-1], inner)
    count = y.numel() // inner
    grid = (triton.cdiv(count, rows) * triton.cdiv(inner, columns),)
    with torch.cuda.device_of(x):
        _gated_linear[grid](
            x, weight, bias, y, count, inner, channels,
            EXACT=inner % columns == 0 and channels % depth == 0, GROUP=GROUP,
            ROWS=rows, COLUMNS=columns, DEPTH=depth, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return y


def two_step_gated_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `sd.kernels.reference.gated_linear`. The linear layer is torch's. GEGLU is a Triton kernel."""
    return geglu(F.linear(x, weight, bias))


def fastest_gated_linear() -> Fastest:
    """Return a function that computes `sd.kernels.reference.gated_linear`."""
    return Fastest(
        "GEGLU",
        {
            "two steps": two_step_gated_linear,
            "one kernel, large tile": partial(fused_gated_linear, LARGE),
            "one kernel, small tile": partial(fused_gated_linear, SMALL),
        },
    )
