"""Hash encoding on CUDA with the interface of reference.py. There is one forward and one backward kernel.

Each program encodes a block of points at a few levels. All blocks of one group of levels run before the
blocks of the next group, so that the table rows of the group stay in the L2 cache. A level with 2^19 rows
takes 4 MB of this cache.

The gradient of the table is summed with atomic additions, so its last bits vary between runs, as with
index_add_. On dense levels, consecutive points often share a cell. The contributions of these points are
therefore first summed within the program, so that one atomic addition per corner is enough.
"""

import functools

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor
from triton import language as tl

from render.encoding.hash_levels import GridLevel

# Points per program of the forward and of the backward pass.
BLOCK = 64
BACKWARD_BLOCK = 128
# The number of levels per program. Four levels with two floats each fill one 32-byte sector in the output row
# of a point.
LEVELS_PER_PROGRAM = 4
# Multipliers of y and z in the spatial hash. The multiplier of x is 1.
PRIMES = (2654435761, 805459861)
# Fused multiply-adds are disabled, because near cell boundaries they would round p · resolution − cell
# differently from the reference.
OPTIONS = {"enable_fp_fusion": False}


@triton.jit
def _position(points, index, inside):
    x = tl.load(points + index * 3, mask=inside, other=0.0)
    y = tl.load(points + index * 3 + 1, mask=inside, other=0.0)
    z = tl.load(points + index * 3 + 2, mask=inside, other=0.0)
    return x, y, z


@triton.jit
def _axis(value, resolution):
    """Return the cell index along one axis, and the position inside the cell from 0 to 1. NaN is mapped to
    the last cell, so that no memory outside the table is read.
    """
    scaled = value * resolution.to(tl.float32)
    cell, last = tl.floor(scaled), (resolution - 1).to(tl.float32)
    cell = tl.where(cell < last, cell, last)
    return cell.to(tl.int32), scaled - cell


@triton.jit
def _cell(position, resolution):
    x, fx = _axis(position[0], resolution)
    y, fy = _axis(position[1], resolution)
    z, fz = _axis(position[2], resolution)
    return (x, y, z), (fx, fy, fz)


@triton.jit
def _level(levels, number):
    """Load one row of level_table."""
    row = levels + number * 6
    factor_y = tl.load(row + 3).to(tl.uint32)
    factor_z = tl.load(row + 4).to(tl.uint32)
    return (
        tl.load(row),
        tl.load(row + 1),
        tl.load(row + 2).to(tl.uint32),
        factor_y,
        factor_z,
        tl.load(row + 5),
    )


@triton.jit
def _corner(cell, fraction, level, right, UP: tl.constexpr, FAR: tl.constexpr):
    """Return the table row and weight of one corner. right: 1 for the corner with the larger x, otherwise 0.

    The hash is computed in uint32, because only its low bits are used.
    """
    _, offset, mask, factor_y, factor_z, dense = level
    x = (cell[0] + right).to(tl.uint32)
    y = (cell[1] + UP).to(tl.uint32) * factor_y
    z = (cell[2] + FAR).to(tl.uint32) * factor_z
    row = tl.where(dense != 0, x + y + z, (x ^ y ^ z) & mask).to(tl.int64) + offset
    weight_x = tl.where(right != 0, fraction[0], 1 - fraction[0])
    weight_y = fraction[1] if UP else 1 - fraction[1]
    weight_z = fraction[2] if FAR else 1 - fraction[2]
    return row, weight_x * weight_y * weight_z


@triton.jit
def _encode(position, inside, right, table, level, F: tl.constexpr, BLOCK: tl.constexpr):
    """Return the features [BLOCK, F] of one level. For point n, element 2n adds up the corners with the
    smaller x, and element 2n + 1 those with the larger x.
    """
    cell, fraction = _cell(position, level[0])
    feature = tl.arange(0, F)[None, :]
    total = tl.zeros([2 * BLOCK, F], tl.float32)
    for corner in tl.static_range(4):
        row, weight = _corner(cell, fraction, level, right, corner // 2, corner % 2)
        total += (
            tl.load(table + row[:, None] * F + feature, mask=inside[:, None], other=0.0) * weight[:, None]
        )
    return tl.sum(tl.reshape(total, [BLOCK, 2, F]), 1)


@triton.jit
def _forward(
    points,
    table,
    levels,
    out,
    count,
    L: tl.constexpr,
    F: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element = tl.arange(0, 2 * BLOCK)
    index = tl.program_id(0) * BLOCK + element // 2
    inside = index < count
    position = _position(points, index, inside)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for member in tl.static_range(GROUP):
        number = tl.program_id(1) * GROUP + member
        if number < L:
            total = _encode(position, inside, element % 2, table, _level(levels, number), F, BLOCK)
            column = number * F + tl.arange(0, F)[None, :]
            mask = (point < count)[:, None]
            tl.store(out + point.to(tl.int64)[:, None] * (L * F) + column, total, mask=mask)


@triton.jit
def _sum_of_run(value, begins, next_value, next_begins):
    return tl.where(next_begins != 0, next_value, value + next_value), begins | next_begins


@triton.jit
def _cell_number(points, index, inside, resolution):
    """Return the linear index of the cell of each point, or −1 for elements without a point."""
    cell, _ = _cell(_position(points, index, inside), resolution)
    return tl.where(inside, cell[0] + (cell[1] + cell[2] * resolution) * resolution, -1)


@triton.jit
def _backward(
    points,
    grad,
    levels,
    grad_table,
    count,
    first,
    L: tl.constexpr,
    F: tl.constexpr,
    RUNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the gradient of level first + program_id(1) to grad_table.

    RUNS: whether the contributions of consecutive points in one cell are summed before one atomic addition.
    Otherwise, for point n, element 2n adds to the corners with the smaller x, and element 2n + 1 to those
    with the larger x.
    """
    SIDES: tl.constexpr = 1 if RUNS else 2
    element = tl.arange(0, SIDES * BLOCK)
    index = tl.program_id(0) * BLOCK + element // SIDES
    inside = index < count
    number = first + tl.program_id(1)
    level = _level(levels, number)
    cell, fraction = _cell(_position(points, index, inside), level[0])
    feature = tl.arange(0, F)[None, :]
    pointer = grad + index.to(tl.int64)[:, None] * (L * F) + number * F + feature
    cotangent = tl.load(pointer, mask=inside[:, None], other=0.0)
    adds = inside
    if RUNS:
        cell_index = _cell_number(points, index, inside, level[0])
        begins = cell_index != _cell_number(points, index - 1, inside & (index > 0), level[0])
        begins = tl.broadcast_to(begins.to(tl.int32)[:, None], [BLOCK, F])
        ends = cell_index != _cell_number(points, index + 1, index + 1 < count, level[0])
        adds = inside & (ends | (element == BLOCK - 1))
    for corner in tl.static_range(8 // SIDES):
        right = corner // 4 if RUNS else element % 2
        row, weight = _corner(cell, fraction, level, right, corner // 2 % 2, corner % 2)
        value = cotangent * weight[:, None]
        if RUNS:
            value, _ = tl.associative_scan((value, begins), 0, _sum_of_run)
        # Zeros are not added. Hidden vertices and the spare rows of a pending mesh have no gradient.
        changes = adds & (tl.max((value != 0).to(tl.int32), 1) > 0)
        tl.atomic_add(grad_table + row[:, None] * F + feature, value, mask=changes[:, None], sem="relaxed")


@functools.cache
def level_table(levels: tuple[GridLevel, ...], device: torch.device) -> Int[Tensor, "L 6"]:
    """Return one row per level: resolution, offset, entries − 1, factor of y, factor of z, dense."""
    rows = []
    for level in levels:
        stride = level.resolution + 1
        factors = (stride, stride * stride) if level.dense else PRIMES
        rows.append([level.resolution, level.offset, level.entries - 1, *factors, level.dense])
    # The rows are created as int64, because the primes are too large for int32. The conversion to int32 keeps
    # the low 32 bits of the primes.
    return torch.tensor(rows, dtype=torch.int64).to(torch.int32).to(device)


def encode(
    points: Float[Tensor, "N 3"],
    table: Float[Tensor, "T F"],
    levels: tuple[GridLevel, ...],
    group: int = LEVELS_PER_PROGRAM,
    block: int = BLOCK,
) -> Float[Tensor, "N LF"]:
    """Encode float32 points in [0, 1]³; see reference.encode. F must be a power of two.

    group (levels per program) and block (points per program, a power of two) affect only the speed.
    """
    count, features = len(points), table.shape[1]
    out = table.new_empty(count, len(levels) * features)
    if count:
        grid = (triton.cdiv(count, block), triton.cdiv(len(levels), group))
        arguments = points.contiguous(), table.contiguous(), level_table(levels, table.device), out, count
        with torch.cuda.device_of(out):
            _forward[grid](*arguments, L=len(levels), F=features, GROUP=group, BLOCK=block, **OPTIONS)
    return out


def encode_backward(
    points: Float[Tensor, "N 3"],
    grad: Float[Tensor, "N LF"],
    levels: tuple[GridLevel, ...],
    runs: bool = True,
    block: int = BACKWARD_BLOCK,
) -> Float[Tensor, "T F"]:
    """Compute the gradient with respect to the table; see reference.encode_backward.

    runs: whether, on dense levels, contributions of consecutive points in one cell are summed before the
    atomic addition.
    """
    count, features = len(points), grad.shape[1] // len(levels)
    grad_table = grad.new_zeros(levels[-1].offset + levels[-1].entries, features)
    merged = sum(level.dense for level in levels) if runs else 0
    arguments = points.contiguous(), grad.contiguous(), level_table(levels, grad.device), grad_table, count
    for first, end in ((0, merged), (merged, len(levels))):
        if count and end > first:
            options = {"L": len(levels), "F": features, "RUNS": end == merged, "BLOCK": block, **OPTIONS}
            with torch.cuda.device_of(grad_table):
                _backward[(triton.cdiv(count, block), end - first)](*arguments, first, **options)
    return grad_table
