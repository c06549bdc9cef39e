"""Fused CUDA kernels of render.normal_image: one for the forward and one for the backward pass.

The kernels process all pixels, so the host does not need the number of covered pixels. The gradients of
vertices are summed with atomic additions (see gbuffer_triton.py).
"""

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import language as tl

from render.kernels.gbuffer_triton import load_pixels, shading_normal, shading_normal_backward
from render.kernels.vec3_triton import (
    BLOCK,
    OPTIONS,
    add_to_corners,
    dot,
    load_vec3,
    rows_of_four,
    scale,
    store_vec3,
)


@triton.jit
def _load_rotation(rotation, pixel, view_pixels, mask):
    """Return the three rows of the rotation of each pixel's view."""
    matrix = rotation + 9 * (pixel // view_pixels)
    return load_vec3(matrix, mask), load_vec3(matrix + 3, mask), load_vec3(matrix + 6, mask)


@triton.jit(do_not_specialize=["view_pixels", "count"])
def _forward(
    values, rast, faces, v_pos, camera, rotation, image, view_pixels, count,
    FLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write image [B*H*W,4]: the rotated normal and 1 at covered pixels, and 0 in the background."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < count
    covered = tl.load(rast + 4 * pixel + 3, mask=inside, other=0.0) > 0
    x, y, z = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    # Most blocks contain either only background or only covered pixels.
    if tl.max(covered.to(tl.int32)) > 0:
        _, vectors, _, _ = load_pixels(values, rast, pixel, faces, v_pos, camera, covered, view_pixels)
        first, second, third = _load_rotation(rotation, pixel, view_pixels, covered)
        normal = shading_normal(vectors)
        x, y, z = dot(first, normal), dot(second, normal), dot(third, normal)
        if FLIP:
            x = -tl.abs(x)
        x, y, z = tl.where(covered, x, 0.0), tl.where(covered, y, 0.0), tl.where(covered, z, 0.0)
    rows = rows_of_four(x, y, z, covered.to(tl.float32))
    tl.store(image + 4 * pixel[:, None] + tl.arange(0, 4)[None, :], rows, mask=inside[:, None])


@triton.jit(do_not_specialize=["view_pixels", "count"])
def _backward(
    values, rast, faces, v_pos, camera, rotation, grad_image, grad_values, grad_v_pos, view_pixels, count,
    FLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the covered pixels of grad_values [B*H*W,6], which must be zero at the start, and add the
    gradients of the vertex positions to grad_v_pos [V,3].

    An output gradient of None is not computed.
    """
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    covered = tl.load(rast + 4 * pixel + 3, mask=pixel < count, other=0.0) > 0
    if tl.max(covered.to(tl.int32)) > 0:
        _, vectors, vertices, edges = load_pixels(
            values, rast, pixel, faces, v_pos, camera, covered, view_pixels
        )
        first, second, third = _load_rotation(rotation, pixel, view_pixels, covered)
        grad_x, grad_y, grad_z = load_vec3(grad_image + 4 * pixel, covered)
        if FLIP:
            x = dot(first, shading_normal(vectors))
            grad_x *= tl.where(x < 0, 1.0, tl.where(x > 0, -1.0, 0.0))
        grad = grad_x, grad_y, grad_z
        d_normal = (
            dot((first[0], second[0], third[0]), grad),
            dot((first[1], second[1], third[1]), grad),
            dot((first[2], second[2], third[2]), grad),
        )
        d_smooth, d_to_viewer, d_corners, grazing = shading_normal_backward(
            vectors, edges, d_normal, scale(d_normal, 0.0)
        )
        if grad_values is not None:
            store_vec3(grad_values + 6 * pixel, scale(d_to_viewer, -1.0), covered)
            store_vec3(grad_values + 6 * pixel + 3, d_smooth, covered)
        if grad_v_pos is not None:
            add_to_corners(grad_v_pos, vertices, d_corners[0], d_corners[1], d_corners[2], covered & grazing)


def normal_image(
    values: Float[Tensor, "B H W 6"],
    rast: Float[Tensor, "B H W 4"],
    faces: Int[Tensor, "F 3"],
    v_pos: Float[Tensor, "V 3"],
    camera: Float[Tensor, "B 3"],
    rotation: Float[Tensor, "B 3 3"],
    flip: bool,
) -> Float[Tensor, "B H W 4"]:
    """Return the result of render.normal_image for float32 tensors.

    values: the interpolated positions and smooth normals. camera: the camera position of each image. The
    image is differentiable with respect to values and v_pos.
    """
    return _NormalImage.apply(values, rast.detach(), faces, v_pos, camera, rotation, flip)


class _NormalImage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *given):
        *inputs, ctx.flip = given
        inputs = [tensor.contiguous() for tensor in inputs]
        rast = inputs[1]
        image, grid, sizes = torch.empty_like(rast), *_NormalImage.launch(rast)
        with torch.cuda.device_of(image):
            _forward[grid](*inputs, image, *sizes, FLIP=ctx.flip, **OPTIONS)
        ctx.save_for_backward(*inputs)
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_image):
        inputs = values, rast, _, v_pos, _, _ = ctx.saved_tensors
        grad_values = torch.zeros_like(values) if ctx.needs_input_grad[0] else None
        grad_v_pos = torch.zeros_like(v_pos) if ctx.needs_input_grad[3] else None
        grid, sizes = _NormalImage.launch(rast)
        with torch.cuda.device_of(rast):
            _backward[grid](
                *inputs, grad_image.contiguous(), grad_values, grad_v_pos, *sizes, FLIP=ctx.flip, **OPTIONS
            )
        return grad_values, None, None, grad_v_pos, None, None, None

    @staticmethod
    def launch(rast: Tensor) -> tuple[tuple[int], tuple[int, int]]:
        """Return the grid, and the number of pixels per view and in all."""
        count = rast[..., 0].numel()
        return (triton.cdiv(count, BLOCK),), (rast.shape[1] * rast.shape[2], count)
