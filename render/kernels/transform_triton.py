"""CUDA kernels of camera.transform_points: one for the forward and one for the backward pass.

These kernels are faster than torch's batched matrix product, which with only 3 columns is far slower than the
memory bandwidth allows. For the gradient, the product of torch also needs a copy and a sum over the views.
"""

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import language as tl

from render.kernels.vec3_triton import BLOCK, load_vec3, rows_of_four, store_vec3


@triton.jit
def _clip_coordinate(row, point):
    """Return the product of one matrix row with (x, y, z, 1)."""
    x, y, z = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    return x * point[0] + y * point[1] + z * point[2] + tl.load(row + 3)


@triton.jit(do_not_specialize=["count"])
def _transform(matrices, points, clip, count, BLOCK: tl.constexpr):
    """Write clip [B,V,4]. Grid: (blocks of points, views)."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask, view = index < count, tl.program_id(1)
    point = load_vec3(points + 3 * index.to(tl.int64), mask)
    matrix = matrices + 16 * view
    rows = rows_of_four(
        _clip_coordinate(matrix, point),
        _clip_coordinate(matrix + 4, point),
        _clip_coordinate(matrix + 8, point),
        _clip_coordinate(matrix + 12, point),
    )
    target = clip + 4 * (view.to(tl.int64) * count + index)
    tl.store(target[:, None] + tl.arange(0, 4)[None, :], rows, mask=mask[:, None])


@triton.jit(do_not_specialize=["count", "batch"])
def _transform_backward(matrices, grad_clip, grad_points, count, batch, BLOCK: tl.constexpr):
    """Write grad_points [V,3], the sum over all views."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    x, y, z = (tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32))
    row, source = matrices, grad_clip + 4 * index.to(tl.int64)
    for _ in range(0, batch):
        for coordinate in tl.static_range(4):
            grad = tl.load(source + coordinate, mask=mask, other=0.0)
            x += grad * tl.load(row + 4 * coordinate)
            y += grad * tl.load(row + 4 * coordinate + 1)
            z += grad * tl.load(row + 4 * coordinate + 2)
        row += 16
        source += 4 * count
    store_vec3(grad_points + 3 * index.to(tl.int64), (x, y, z), mask)


def transform_points(
    matrices: Float[Tensor, "B 4 4"], points: Float[Tensor, "V 3"]
) -> Float[Tensor, "B V 4"]:
    """Return camera.transform_points for float32 tensors. It is differentiable with respect to points."""
    return _TransformPoints.apply(matrices, points)


class _TransformPoints(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrices, points):
        matrices, points = matrices.contiguous(), points.contiguous()
        clip = points.new_empty(len(matrices), len(points), 4)
        if clip.numel():
            with torch.cuda.device_of(clip):
                grid = triton.cdiv(len(points), BLOCK), len(matrices)
                _transform[grid](matrices, points, clip, len(points), BLOCK=BLOCK)
        ctx.save_for_backward(matrices)
        return clip

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_clip):
        (matrices,) = ctx.saved_tensors
        batch, count, _ = grad_clip.shape
        grad_points = grad_clip.new_empty(count, 3)
        if count:
            with torch.cuda.device_of(grad_clip):
                _transform_backward[(triton.cdiv(count, BLOCK),)](
                    matrices, grad_clip.contiguous(), grad_points, count, batch, BLOCK=BLOCK
                )
        return None, grad_points
