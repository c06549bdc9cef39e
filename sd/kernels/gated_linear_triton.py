"""A linear layer and GEGLU in one Triton kernel.

The linear layer's output has 8 times as many channels as its input. The kernel never writes this output to
memory. The rows of the weight alternate between value and gate, so one matrix product gives both, and a value
and its gate are in the same thread.
"""

import functools

import torch
import triton
from triton import language as tl

from sd.kernels.triton_math import gelu

# Number of row blocks whose programs have consecutive numbers, so that these programs share the weights in
# the cache.
GROUP = 8
# Tile sizes (rows, rows of the weight, input channels), warps, and stages of the software pipeline.
TILE, WARPS, STAGES = (128, 128, 64), 4, 3
# An upper bound of the shared memory that the kernel needs in addition to its tiles, in bytes.
RESERVED_BYTES = 1024


@triton.jit(do_not_specialize=["M"])
def _gated_linear(
    x, weight, bias, y, M, N, K,
    EXACT: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """x: [M, K]. weight: [N, K], whose rows alternate between value and gate. y: [M, N / 2]. EXACT: whether N
    and K are multiples of the tile sizes.
    """
    program, row_blocks, column_blocks = tl.program_id(0), tl.cdiv(M, ROWS), tl.cdiv(N, COLUMNS)
    first_block = program // (GROUP * column_blocks) * GROUP
    blocks_in_group = tl.minimum(row_blocks - first_block, GROUP)
    row_block = first_block + program % (GROUP * column_blocks) % blocks_in_group
    column_block = program % (GROUP * column_blocks) // blocks_in_group
    row = row_block * ROWS + tl.arange(0, ROWS)
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    # Rows and columns outside the output are replaced by valid ones for the loads. Their results are not
    # stored.
    x += (row % M).to(tl.int64)[:, None] * K + depth[None, :]
    weight_column = column if EXACT else column % N
    weight += weight_column[None, :] * K + depth[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, K, DEPTH):
        if EXACT:
            x_tile, weight_tile = tl.load(x + start), tl.load(weight + start)
        else:
            mask = start + depth < K
            x_tile = tl.load(x + start, mask=mask[None, :], other=0.0)
            weight_tile = tl.load(weight + start, mask=mask[:, None], other=0.0)
        total = tl.dot(x_tile, weight_tile, total, input_precision="ieee")
    total += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    value, gate = tl.split(tl.reshape(total, (ROWS, COLUMNS // 2, 2)))
    value = value * gelu(gate)
    column = column_block * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
    mask = (row < M)[:, None] & (column < N // 2)[None, :]
    offsets = row.to(tl.int64)[:, None] * (N // 2) + column[None, :]
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=mask)


def gated_linear(x, weight, bias):
    """See `sd.kernels.reference.gated_linear`. The result is not differentiable."""
    assert not (x.requires_grad and torch.is_grad_enabled())
    x, weight = x.contiguous(), weight.contiguous()
    rows, columns, depth = TILE
    outputs, channels = weight.shape
    y = x.new_empty(*x.shape[:-1], outputs // 2)
    count = x.numel() // channels
    grid = (triton.cdiv(count, rows) * triton.cdiv(outputs, columns),)
    with torch.cuda.device_of(x):
        _gated_linear[grid](
            x, weight, bias, y, count, outputs, channels,
            EXACT=outputs % columns == 0 and channels % depth == 0, GROUP=GROUP,
            ROWS=rows, COLUMNS=columns, DEPTH=depth, num_warps=WARPS, num_stages=stages_for(x),
        )  # fmt: skip
    return y


def stages_for(x):
    """Return the number of pipeline stages whose tiles fit into the shared memory of the GPU of x."""
    if not x.is_cuda:
        return STAGES
    rows, columns, depth = TILE
    tile_bytes = (rows + columns) * depth * x.element_size()
    shared = device_properties(x.device.index)["max_shared_mem"]
    return max(1, min(STAGES, (shared - RESERVED_BYTES) // tile_bytes))


@functools.cache
def device_properties(index):
    """Return Triton's dictionary of the properties of a GPU."""
    return triton.runtime.driver.active.utils.get_device_properties(index)
