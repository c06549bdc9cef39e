"""How Triton's launches cut the work, on a GPU and in the interpreter that tests on the CPU run."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton
from torch import Tensor


@dataclass(frozen=True)
class Listed:
    """How listed faces are drawn: tile is faces, rows and columns at once, by so many warps; programs is for
    faces, for tiles of one."""

    tile: tuple[int, int, int]
    programs: tuple[int, int]
    warps: int


@dataclass(frozen=True)
class Lanes:
    """How the work is cut.

    Of faces, edges, pixels, pixels that have a pair (blended), silhouettes (walked, each over walk_lines
    lines of pixels at once), and values with a channel, that many to a program. A face whose box has more
    pixels than small_box is listed, as medium or, with more than medium_box, as large. Only the GPU knows how
    long the lists are, so a fixed number of programs shares each.
    """

    faces: int
    edges: int
    pixels: int
    blended: int
    walked: int
    walk_lines: int
    values: int
    small_box: int
    medium_box: int
    medium: Listed
    large: Listed
    walk_programs: int
    walk_warps: int
    blend_programs: int


ON_GPU = Lanes(
    faces=64,
    edges=128,
    pixels=128,
    blended=32,
    walked=32,
    walk_lines=4,
    values=1024,
    small_box=64,
    medium_box=1024,
    # Torn surfaces have a million of them: half a warp is enough for each.
    medium=Listed((2, 8, 8), (4096, 1), 1),
    large=Listed((1, 8, 32), (256, 8), 4),
    walk_programs=4096,
    walk_warps=1,
    blend_programs=1024,
)
# An operation costs the interpreter the same for one value and for a thousand.
INTERPRETED = Lanes(
    faces=1024,
    edges=4096,
    pixels=4096,
    blended=1024,
    walked=256,
    walk_lines=16,
    values=32768,
    small_box=8,
    medium_box=64,
    medium=Listed((16, 8, 16), (1, 1), 1),
    large=Listed((16, 8, 128), (1, 1), 1),
    walk_programs=1,
    walk_warps=4,
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
