"""Fused CUDA kernels of scene.normal_image, one for each direction."""

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import language as tl

from render.gbuffer import SurfacePoints
from render.kernels.vec3_triton import BLOCK, OPTIONS, dot, load_triple, store_triple


@triton.jit(do_not_specialize=["view_pixels", "count"])
def _forward(normals, pixel, rotation, image, view_pixels, count, FLIP: tl.constexpr, BLOCK: tl.constexpr):
    """Write the covered pixels of image [B*H*W,4]."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = index < count
    spot = tl.load(pixel + index, mask=there, other=0)
    normal = load_triple(normals + 3 * index.to(tl.int64), there)
    rows = rotation + 9 * (spot // view_pixels)
    turned_x = dot(load_triple(rows, there), normal)
    turned_y = dot(load_triple(rows + 3, there), normal)
    turned_z = dot(load_triple(rows + 6, there), normal)
    if FLIP:
        turned_x = -tl.abs(turned_x)
    store_triple(image + 4 * spot, (turned_x, turned_y, turned_z), there)
    tl.store(image + 4 * spot + 3, 1.0, mask=there)


@triton.jit(do_not_specialize=["view_pixels", "count"])
def _backward(
    normals, pixel, rotation, grad_image, grad_normals, view_pixels, count,
    FLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write grad_normals [N,3]."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = index < count
    row = 3 * index.to(tl.int64)
    spot = tl.load(pixel + index, mask=there, other=0)
    push_x, push_y, push_z = load_triple(grad_image + 4 * spot, there)
    rows = rotation + 9 * (spot // view_pixels)
    first, second, third = (
        load_triple(rows, there),
        load_triple(rows + 3, there),
        load_triple(rows + 6, there),
    )
    if FLIP:
        turned_x = dot(first, load_triple(normals + row, there))
        push_x *= tl.where(turned_x < 0, 1.0, tl.where(turned_x > 0, -1.0, 0.0))
    push = push_x, push_y, push_z
    x = dot((first[0], second[0], third[0]), push)
    y = dot((first[1], second[1], third[1]), push)
    z = dot((first[2], second[2], third[2]), push)
    store_triple(grad_normals + row, (x, y, z), there)


def normal_image(
    points: SurfacePoints, rotation: Float[Tensor, "B 3 3"], flip: bool
) -> Float[Tensor, "B H W 4"]:
    """scene.normal_image for float32 tensors. Gradients flow to points.normal."""
    return _NormalImage.apply(points.normal, points.pixel, rotation, tuple(points.rast.shape[:3]), flip)


class _NormalImage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, normals, pixel, rotation, size, flip):
        given = [tensor.contiguous() for tensor in (normals, pixel, rotation)]
        image = normals.new_zeros(*size, 4)
        if len(pixel):
            with torch.cuda.device_of(image):
                grid = (triton.cdiv(len(pixel), BLOCK),)
                _forward[grid](*given, image, size[1] * size[2], len(pixel), FLIP=flip, **OPTIONS)
        ctx.save_for_backward(*given)
        ctx.flip = flip
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_image):
        given = normals, pixel, _ = ctx.saved_tensors
        grad_normals = torch.empty_like(normals)
        if len(pixel):
            with torch.cuda.device_of(normals):
                grid, sizes = (triton.cdiv(len(pixel), BLOCK),), (grad_image[0, ..., 0].numel(), len(pixel))
                _backward[grid](
                    *given, grad_image.contiguous(), grad_normals, *sizes, FLIP=ctx.flip, **OPTIONS
                )
        return grad_normals, None, None, None, None
