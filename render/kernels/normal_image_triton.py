"""Fused CUDA kernels of scene.normal_image: one for the forward and one for the backward pass."""

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import language as tl

from render.gbuffer import SurfacePoints
from render.kernels.vec3_triton import BLOCK, OPTIONS, dot, load_vec3, store_vec3


@triton.jit(do_not_specialize=["view_pixels", "count"])
def _forward(normals, pixel, rotation, image, view_pixels, count, FLIP: tl.constexpr, BLOCK: tl.constexpr):
    """Write the rotated normal and the value 1 to the covered pixels of image [B*H*W,4]."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    pixel_index = tl.load(pixel + index, mask=mask, other=0)
    normal = load_vec3(normals + 3 * index.to(tl.int64), mask)
    matrix = rotation + 9 * (pixel_index // view_pixels)
    rotated_x = dot(load_vec3(matrix, mask), normal)
    rotated_y = dot(load_vec3(matrix + 3, mask), normal)
    rotated_z = dot(load_vec3(matrix + 6, mask), normal)
    if FLIP:
        rotated_x = -tl.abs(rotated_x)
    store_vec3(image + 4 * pixel_index, (rotated_x, rotated_y, rotated_z), mask)
    tl.store(image + 4 * pixel_index + 3, 1.0, mask=mask)


@triton.jit(do_not_specialize=["view_pixels", "count"])
def _backward(
    normals, pixel, rotation, grad_image, grad_normals, view_pixels, count,
    FLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the normals to grad_normals [N,3]."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    row = 3 * index.to(tl.int64)
    pixel_index = tl.load(pixel + index, mask=mask, other=0)
    grad_x, grad_y, grad_z = load_vec3(grad_image + 4 * pixel_index, mask)
    matrix = rotation + 9 * (pixel_index // view_pixels)
    first, second, third = (
        load_vec3(matrix, mask),
        load_vec3(matrix + 3, mask),
        load_vec3(matrix + 6, mask),
    )
    if FLIP:
        rotated_x = dot(first, load_vec3(normals + row, mask))
        grad_x *= tl.where(rotated_x < 0, 1.0, tl.where(rotated_x > 0, -1.0, 0.0))
    grad = grad_x, grad_y, grad_z
    x = dot((first[0], second[0], third[0]), grad)
    y = dot((first[1], second[1], third[1]), grad)
    z = dot((first[2], second[2], third[2]), grad)
    store_vec3(grad_normals + row, (x, y, z), mask)


def normal_image(
    points: SurfacePoints, rotation: Float[Tensor, "B 3 3"], flip: bool
) -> Float[Tensor, "B H W 4"]:
    """Return the same image as the function `normal_image` in render/scene.py. The tensors must be float32.

    The image is differentiable with respect to points.normal.
    """
    return _NormalImage.apply(points.normal, points.pixel, rotation, tuple(points.rast.shape[:3]), flip)


class _NormalImage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, normals, pixel, rotation, size, flip):
        inputs = [tensor.contiguous() for tensor in (normals, pixel, rotation)]
        image = normals.new_zeros(*size, 4)
        if len(pixel):
            with torch.cuda.device_of(image):
                grid = (triton.cdiv(len(pixel), BLOCK),)
                _forward[grid](*inputs, image, size[1] * size[2], len(pixel), FLIP=flip, **OPTIONS)
        ctx.save_for_backward(*inputs)
        ctx.flip = flip
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_image):
        inputs = normals, pixel, _ = ctx.saved_tensors
        grad_normals = torch.empty_like(normals)
        if len(pixel):
            with torch.cuda.device_of(normals):
                grid, sizes = (triton.cdiv(len(pixel), BLOCK),), (grad_image[0, ..., 0].numel(), len(pixel))
                _backward[grid](
                    *inputs, grad_image.contiguous(), grad_normals, *sizes, FLIP=ctx.flip, **OPTIONS
                )
        return grad_normals, None, None, None, None
