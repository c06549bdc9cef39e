"""How Triton's launches cut the work, on a GPU and in the interpreter that tests on the CPU run."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

# Pixel lines that an edge is followed over at once.
LINES = 16


@dataclass(frozen=True)
class Lanes:
    """How the work is cut.

    Of faces, edges, pixels, pixels that have a pair (blended), silhouettes (walked), and values with a
    channel, that many to a program. A face whose box has more pixels than small_box is large: large_tile is
    faces, rows and columns at once. Only the GPU knows how long the lists are, so a fixed number of programs
    shares each; large_programs is for faces, for tiles of one.
    """

    faces: int
    edges: int
    pixels: int
    blended: int
    walked: int
    values: int
    small_box: int
    large_tile: tuple[int, int, int]
    large_programs: tuple[int, int]
    walk_programs: int
    blend_programs: int


ON_GPU = Lanes(
    faces=64,
    edges=128,
    pixels=128,
    blended=32,
    walked=8,
    values=1024,
    small_box=64,
    large_tile=(1, 8, 32),
    large_programs=(256, 8),
    walk_programs=1024,
    blend_programs=1024,
)
# An operation costs the interpreter the same for one value and for a thousand.
INTERPRETED = Lanes(
    faces=1024,
    edges=4096,
    pixels=4096,
    blended=1024,
    walked=256,
    values=32768,
    small_box=8,
    large_tile=(16, 8, 128),
    large_programs=(1, 1),
    walk_programs=1,
    blend_programs=1,
)


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, whatever the tensors' is."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def lanes_on(tensor: Tensor) -> Lanes:
    return ON_GPU if tensor.is_cuda else INTERPRETED


def channel_blocks(channels: int, elements: int, most: int) -> dict[str, int]:
    """CHANNELS, the power of two that holds them, and how many pixels a program then takes."""
    padded = triton.next_power_of_2(channels)
    return {"CHANNELS": channels, "PADDED": padded, "BLOCK": max(min(elements // padded, most), 1)}
