"""Which edges and tets the surface crosses, in one pass over them: marching_tets.corners_inside on CUDA."""

import torch
import triton
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from triton import language as tl

BLOCK = 512


@triton.jit
def _corners_inside(inside, simplices, counts, total, K: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = (index < total)[:, None]
    corner = index.to(tl.int64)[:, None] * K + tl.arange(0, K)[None, :]
    vertex = tl.load(simplices + corner, mask=there, other=0)
    bit = tl.load(inside + vertex, mask=there, other=0).to(tl.int32)
    tl.store(counts + index, tl.sum(bit, 1).to(tl.uint8), mask=index < total)


def corners_inside(inside: Bool[Tensor, " V"], simplices: Int[Tensor, "S K"]) -> UInt8[Tensor, " S"]:
    """How many corners of each edge or tet are inside; K is a power of two."""
    total, corners = simplices.shape
    counts = torch.empty(total, dtype=torch.uint8, device=simplices.device)
    if total:
        with torch.cuda.device_of(counts):
            _corners_inside[(triton.cdiv(total, BLOCK),)](
                inside.contiguous().view(torch.uint8), simplices.contiguous(), counts, total, corners, BLOCK
            )
    return counts
