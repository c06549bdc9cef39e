"""Reference implementation of the hash encoding in torch, and the interface of all implementations.

The method is that of Müller et al. 2022, Instant Neural Graphics Primitives. Level l of L has round(N_min ·
(N_max / N_min)^(l / (L − 1))) cells per axis, where N_min is base_resolution and N_max is max_resolution. If
the (cells + 1)³ vertices of a level fit into 2^log2_hashmap_size rows, each vertex has its own row. Otherwise
the spatial hash x ⊕ 2654435761 y ⊕ 805459861 z selects the row, so several vertices may share a row. At each
level, the features of a point are interpolated trilinearly from the eight corners of its cell. The features
of all levels are concatenated.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.encoding.hash_levels import GridLevel

HASH_PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True)
class Encoder:
    """An implementation of the hash encoding. The functions have the parameters and results of `encode` and
    `encode_backward` in this module.
    """

    name: str
    encode: Callable[..., Tensor]
    encode_backward: Callable[..., Tensor]


def level_corners(
    points: Float[Tensor, "N 3"], level: GridLevel
) -> tuple[Int[Tensor, "N 8"], Float[Tensor, "N 8"]]:
    """Return table rows [N,8] and trilinear weights [N,8] of the cell corners around points in [0, 1]³."""
    scaled = points * level.resolution
    # A point with coordinate 1 belongs to the last cell.
    cell = scaled.floor().clamp(max=level.resolution - 1)
    fraction = scaled - cell
    near = cell.long()
    corner = torch.stack([near, near + 1], -1)  # [N, axis, side]
    weight = torch.stack([1 - fraction, fraction], -1)
    side_weight = weight[:, 0, :, None, None] * weight[:, 1, None, :, None] * weight[:, 2, None, None, :]
    if level.dense:
        stride = level.resolution + 1
        x, y, z = corner[:, 0], corner[:, 1] * stride, corner[:, 2] * (stride * stride)
        row = x[:, :, None, None] + y[:, None, :, None] + z[:, None, None, :]
    else:
        x, y, z = (corner[:, axis] * HASH_PRIMES[axis] for axis in range(3))
        row = (x[:, :, None, None] ^ y[:, None, :, None] ^ z[:, None, None, :]) & (level.entries - 1)
    return row.reshape(-1, 8) + level.offset, side_weight.reshape(-1, 8)


def encode(
    points: Float[Tensor, "N 3"], table: Float[Tensor, "T F"], levels: tuple[GridLevel, ...]
) -> Float[Tensor, "N LF"]:
    """Encode points in [0, 1]³ on any device."""
    features = table.shape[1]
    out = table.new_empty(len(points), len(levels), features)
    for number, level in enumerate(levels):
        row, weight = level_corners(points, level)
        out[:, number] = (table[row] * weight[:, :, None]).sum(1)
    return out.reshape(len(points), len(levels) * features)


def encode_backward(
    points: Float[Tensor, "N 3"],
    grad: Float[Tensor, "N LF"],
    levels: tuple[GridLevel, ...],
) -> Float[Tensor, "T F"]:
    """Compute the gradient with respect to the table from the gradient with respect to the features."""
    features = grad.shape[1] // len(levels)
    grad = grad.reshape(len(points), len(levels), features)
    grad_table = grad.new_zeros(levels[-1].offset + levels[-1].entries, features)
    for number, level in enumerate(levels):
        row, weight = level_corners(points, level)
        weighted = weight[:, :, None] * grad[:, number, None, :]
        grad_table.index_add_(0, row.reshape(-1), weighted.reshape(-1, features))
    return grad_table


REFERENCE = Encoder("reference", encode, encode_backward)
