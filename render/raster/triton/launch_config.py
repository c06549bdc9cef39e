"""Block sizes of the Triton kernels for a GPU, and for the interpreter that tests use on a CPU."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton
from torch import Tensor


@dataclass(frozen=True)
class ListLaunch:
    """Launch parameters of the kernel for listed faces.

    tile: faces, rows and columns per block. programs: how many programs share the faces, and how many share
    the tiles of each face. warps: warps per program.
    """

    tile: tuple[int, int, int]
    programs: tuple[int, int]
    warps: int


@dataclass(frozen=True)
class LaunchConfig:
    """Block sizes of all kernels.

    faces, edges, pixels, silhouettes_per_program: elements per program. half_edges: half-edges per program of
    the kernel that combines marks. blend_pixels: pixels per program of the blend kernels. lines_per_step:
    pixel lines per silhouette that are processed at a time. For a mesh with at least many_faces faces, one
    line is processed at a time. values: attribute or colour values per program, over all channels. small_box,
    medium_box: a face is listed as medium if its bounding box has more than small_box pixels, and as large if
    it has more than medium_box pixels. medium, large: the launches for the listed faces. silhouette_programs,
    blend_programs: numbers of programs. These numbers do not depend on the lengths of the lists, because the
    lengths are known only on the GPU. silhouette_warps: warps per program.
    """

    faces: int
    edges: int
    half_edges: int
    pixels: int
    blend_pixels: int
    silhouettes_per_program: int
    lines_per_step: int
    many_faces: int
    values: int
    small_box: int
    medium_box: int
    medium: ListLaunch
    large: ListLaunch
    silhouette_programs: int
    silhouette_warps: int
    blend_programs: int


GPU_CONFIG = LaunchConfig(
    # A program has only one warp and one face per thread, because the whole program takes as long as its
    # largest face.
    faces=32,
    edges=256,
    half_edges=256,
    pixels=128,
    blend_pixels=64,
    silhouettes_per_program=32,
    lines_per_step=4,
    many_faces=100_000,
    values=1024,
    small_box=64,
    medium_box=1024,
    # A fragmented surface may have a million medium faces, so one warp processes two medium faces at a time.
    medium=ListLaunch((2, 8, 8), (4096, 1), 1),
    large=ListLaunch((1, 8, 32), (256, 8), 4),
    silhouette_programs=8192,
    silhouette_warps=1,
    blend_programs=1024,
)
# The time of an operation in the interpreter hardly depends on the block size, so the blocks are large.
INTERPRETER_CONFIG = LaunchConfig(
    faces=1024,
    edges=4096,
    half_edges=4096,
    pixels=4096,
    blend_pixels=1024,
    silhouettes_per_program=256,
    lines_per_step=16,
    many_faces=1_000,
    values=32768,
    small_box=8,
    medium_box=64,
    medium=ListLaunch((16, 8, 16), (1, 1), 1),
    large=ListLaunch((16, 8, 128), (1, 1), 1),
    silhouette_programs=1,
    silhouette_warps=4,
    blend_programs=1,
)


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Return a context in which the tensor's device is current, because Triton launches kernels on the
    current device.
    """
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def launch_config_for(tensor: Tensor) -> LaunchConfig:
    return GPU_CONFIG if tensor.is_cuda else INTERPRETER_CONFIG


def channel_blocks(channels: int, elements: int, most: int) -> dict[str, int]:
    """Return the launch constants CHANNELS, PADDED (the next power of two) and BLOCK (pixels per program)."""
    padded = triton.next_power_of_2(channels)
    return {"CHANNELS": channels, "PADDED": padded, "BLOCK": max(min(elements // padded, most), 1)}
