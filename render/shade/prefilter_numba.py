"""Convolution of a fixed light on the CPU with numba. The result is that of prefilter.convolve_torch.

All samples of a texel are summed by one thread, so the result does not depend on the number of threads.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from render.kernels.numba_kernel import kernel

# There are more parts than threads, which balances the load.
PARTS_PER_THREAD = 4


@kernel
def _accumulate(table, size, directions, weights, axes, first, last, out):
    """Add the weighted bilinear lookups to out[n] for first ≤ n < last. Directions are in the frame axes[:,
    n].
    """
    one, half = np.float32(1), np.float32(0.5)
    scale = half * np.float32(size)
    stride = size + 2
    for n in range(first, last):
        red = green = blue = np.float32(0)
        for s in range(directions.shape[0]):
            a, b, c = directions[s, 0], directions[s, 1], directions[s, 2]
            x = a * axes[0, n, 0] + b * axes[1, n, 0] + c * axes[2, n, 0]
            y = a * axes[0, n, 1] + b * axes[1, n, 1] + c * axes[2, n, 1]
            z = a * axes[0, n, 2] + b * axes[1, n, 2] + c * axes[2, n, 2]
            # Select the face, the outward component and the (column, row) components as in cubemap.FACE_AXES.
            if abs(x) >= abs(y) and abs(x) >= abs(z):
                face, major, column, row = (0, x, -z, -y) if x > 0 else (1, -x, z, -y)
            elif abs(y) >= abs(z):
                face, major, column, row = (2, y, x, z) if y > 0 else (3, -y, x, -z)
            else:
                face, major, column, row = (4, z, x, -y) if z > 0 else (5, -z, -x, -y)
            # Texel i of a face is texel i + 1 of the bordered face.
            column = (column / major + one) * scale + half
            row = (row / major + one) * scale + half
            left = min(max(np.int64(column), 0), size)
            top = min(max(np.int64(row), 0), size)
            right_share, lower_share = column - np.float32(left), row - np.float32(top)
            upper = (one - lower_share) * weights[s]
            lower = lower_share * weights[s]
            upper_left, upper_right = upper * (one - right_share), upper * right_share
            lower_left, lower_right = lower * (one - right_share), lower * right_share
            i = (face * stride + top) * stride + left
            j = i + stride
            red += upper_left * table[i, 0] + upper_right * table[i + 1, 0]
            red += lower_left * table[j, 0] + lower_right * table[j + 1, 0]
            green += upper_left * table[i, 1] + upper_right * table[i + 1, 1]
            green += lower_left * table[j, 1] + lower_right * table[j + 1, 1]
            blue += upper_left * table[i, 2] + upper_right * table[i + 1, 2]
            blue += lower_left * table[j, 2] + lower_right * table[j + 1, 2]
        out[n, 0] += red
        out[n, 1] += green
        out[n, 2] += blue


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="prefilter")


def convolve(
    groups: list[tuple[Float[Tensor, "T 3"], int, Float[Tensor, "S 3"], Float[Tensor, " S"]]],
    frames: Float[Tensor, "3 N 3"],
) -> Float[Tensor, "N 3"]:
    """Return the result of prefilter.convolve_torch for float32 CPU tensors, without gradients."""
    count, threads = frames.shape[1], torch.get_num_threads()
    out = torch.zeros(count, 3)
    axes, target = frames.contiguous().numpy(), out.numpy()
    arrays = [
        (table.contiguous().numpy(), size, direction.contiguous().numpy(), weight.contiguous().numpy())
        for table, size, direction, weight in groups
    ]

    def convolve_part(bounds: tuple[int, int]) -> None:
        for table, size, direction, weight in arrays:
            _accumulate(table, size, direction, weight, axes, *bounds, target)

    step = max(1, -(-count // (threads * PARTS_PER_THREAD)))
    parts = [(first, min(first + step, count)) for first in range(0, count, step)]
    # list() waits for the threads and raises their exceptions.
    list(_pool(threads).map(convolve_part, parts))
    return out
