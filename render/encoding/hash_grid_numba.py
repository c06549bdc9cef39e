"""Hash encoding on the CPU with numba. The functions are 3 to 10 times faster than those of reference.py.

Each thread processes whole levels. Two levels never share a table row, so the order in which gradients are
summed does not depend on the number of threads, and runs are bit-reproducible.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from render.encoding.hash_levels import GridLevel
from render.kernels.numba_kernel import kernel


@kernel
def _corner_row(x, y, z, resolution, entries, dense, offset):
    if dense:
        stride = resolution + 1
        return offset + x + stride * (y + stride * z)
    return offset + ((x ^ (y * 2654435761) ^ (z * 805459861)) & (entries - 1))


@kernel
def _cell(value, resolution):
    """Return the cell index along one axis, and the position inside the cell from 0 to 1. The coordinate 1
    belongs to the last cell.
    """
    scaled = value * np.float32(resolution)
    cell = min(np.int64(np.floor(scaled)), resolution - 1)
    return cell, scaled - np.float32(cell)


@kernel
def _encode_level(points, table, resolution, entries, dense, offset, out, column):
    features = table.shape[1]
    one = np.float32(1)
    for n in range(points.shape[0]):
        x, fx = _cell(points[n, 0], resolution)
        y, fy = _cell(points[n, 1], resolution)
        z, fz = _cell(points[n, 2], resolution)
        for f in range(features):
            out[n, column + f] = 0
        for corner in range(8):
            i, j, k = corner >> 2, (corner >> 1) & 1, corner & 1
            weight = (fx if i else one - fx) * (fy if j else one - fy) * (fz if k else one - fz)
            row = _corner_row(x + i, y + j, z + k, resolution, entries, dense, offset)
            for f in range(features):
                out[n, column + f] += weight * table[row, f]


@kernel
def _encode_level_backward(points, grad, resolution, entries, dense, offset, grad_table, column):
    features = grad_table.shape[1]
    one = np.float32(1)
    for n in range(points.shape[0]):
        x, fx = _cell(points[n, 0], resolution)
        y, fy = _cell(points[n, 1], resolution)
        z, fz = _cell(points[n, 2], resolution)
        for corner in range(8):
            i, j, k = corner >> 2, (corner >> 1) & 1, corner & 1
            weight = (fx if i else one - fx) * (fy if j else one - fy) * (fz if k else one - fz)
            row = _corner_row(x + i, y + j, z + k, resolution, entries, dense, offset)
            for f in range(features):
                grad_table[row, f] += weight * grad[n, column + f]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="hash-grid")


def _each_level(level_kernel, points, source, levels, target, features):
    def encode_level(number: int) -> None:
        level = levels[number]
        level_kernel(
            points,
            source,
            level.resolution,
            level.entries,
            level.dense,
            level.offset,
            target,
            number * features,
        )

    # list() waits for the threads and raises their exceptions. The finest levels take the longest, so they
    # are started first.
    list(_pool(torch.get_num_threads()).map(encode_level, reversed(range(len(levels)))))


def encode(
    points: Float[Tensor, "N 3"], table: Float[Tensor, "T F"], levels: "tuple[GridLevel, ...]"
) -> Float[Tensor, "N LF"]:
    """Encode float32 points in [0, 1]³; see reference.encode."""
    features = table.shape[1]
    out = torch.empty(len(points), len(levels) * features)
    inputs = points.detach().contiguous().numpy(), table.detach().contiguous().numpy()
    _each_level(_encode_level, *inputs, levels, out.numpy(), features)
    return out


def encode_backward(
    points: Float[Tensor, "N 3"], grad: Float[Tensor, "N LF"], levels: "tuple[GridLevel, ...]"
) -> Float[Tensor, "T F"]:
    """Compute the gradient with respect to the table; see reference.encode_backward."""
    features = grad.shape[1] // len(levels)
    grad_table = torch.zeros(levels[-1].offset + levels[-1].entries, features)
    inputs = points.contiguous().numpy(), grad.contiguous().numpy()
    _each_level(_encode_level_backward, *inputs, levels, grad_table.numpy(), features)
    return grad_table
