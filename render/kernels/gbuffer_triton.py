"""Fused CUDA kernels of gbuffer.surface_points: one for the forward and one for the backward pass.

The gradients of vertices are summed with atomic additions, so their last bits vary between runs, as with
index_add_. Only points at grazing angles contribute to these gradients, because only their shading normals
depend on the face normal, and thereby on the vertex positions.
"""

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import language as tl

from render.kernels.vec3_triton import (
    BLOCK,
    OPTIONS,
    add,
    add_to_corners,
    dot,
    load_corners,
    load_vec3,
    scale,
    store_vec3,
    subtract,
    unit,
    unit_backward,
)
from render.raster.triton.triangles import cross, load_face
from render.shade import normals

GRAZING = tl.constexpr(normals.GRAZING)


@triton.jit
def load_pixels(values, rast, pixel_index, faces, v_pos, camera, mask, view_pixels):
    """Return position, (smooth normal, face normal, to_viewer), face vertices and two face edges of covered
    pixels.

    The normals and to_viewer are not normalised.
    """
    position = load_vec3(values + 6 * pixel_index, mask)
    smooth = load_vec3(values + 6 * pixel_index + 3, mask)
    # rast stores face index + 1.
    face = tl.load(rast + 4 * pixel_index + 3, mask=mask, other=1.0).to(tl.int32) - 1
    vertices = load_face(faces, face, mask)
    a, b, c = load_corners(v_pos, vertices, mask)
    p, q = subtract(b, a), subtract(c, a)
    to_viewer = subtract(load_vec3(camera + 3 * (pixel_index // view_pixels), mask), position)
    return position, (smooth, cross(p, q), to_viewer), vertices, (p, q)


@triton.jit
def blend_normals(smooth, face, view):
    """Return the terms of shading_normal: side (±1), view·smooth / GRAZING, the same value clamped to [0, 1],
    and the blended normal before normalisation.
    """
    side = tl.where(dot(face, view) < 0, -1.0, 1.0)
    facing = tl.div_rn(dot(smooth, scale(view, side)), GRAZING)
    blend = tl.minimum(tl.maximum(facing, 0.0), 1.0)
    difference = subtract(smooth, face)
    # The formula is that of torch.lerp, which is exact for the weights 0 and 1.
    blended = add(face, scale(difference, blend))
    from_smooth = subtract(smooth, scale(difference, 1 - blend))
    x = tl.where(blend < 0.5, blended[0], from_smooth[0])
    y = tl.where(blend < 0.5, blended[1], from_smooth[1])
    z = tl.where(blend < 0.5, blended[2], from_smooth[2])
    return side, facing, blend, (x, y, z)


@triton.jit
def shading_normal(vectors):
    """Return the shading normal for the smooth normal, the face normal and to_viewer, which need not have
    unit length.
    """
    smooth, _ = unit(vectors[0])
    face, _ = unit(vectors[1])
    view, _ = unit(vectors[2])
    side, _, _, blended = blend_normals(smooth, face, view)
    shading, _ = unit(scale(blended, side))
    return shading


@triton.jit
def shading_normal_backward(vectors, edges, d_normal, d_view):
    """Return the gradients of the smooth normal, of to_viewer and of the three face corners, and whether the
    gradient of the corners can be nonzero.

    d_normal: gradient of `shading_normal(vectors)`. d_view: gradient of the unit vector of to_viewer, apart
    from that of the shading normal. The factor `side` (±1) of the shading normal has no gradient.
    """
    smooth, inv_smooth = unit(vectors[0])
    face, inv_face = unit(vectors[1])
    view, inv_view = unit(vectors[2])
    side, facing, blend, blended = blend_normals(smooth, face, view)
    shading, inv_shading = unit(scale(blended, side))
    d_normal = scale(unit_backward(d_normal, shading, inv_shading), side)
    unclamped = (facing >= 0) & (facing <= 1)
    d_facing = tl.where(unclamped, tl.div_rn(dot(d_normal, subtract(smooth, face)), GRAZING), 0.0)
    d_to_viewer = unit_backward(add(d_view, scale(smooth, d_facing * side)), view, inv_view)
    d_smooth = add(scale(d_normal, blend), scale(view, d_facing * side))
    d_smooth = unit_backward(d_smooth, smooth, inv_smooth)
    d_face = unit_backward(scale(d_normal, 1 - blend), face, inv_face)
    # For f = p × q, the gradients are ∂L/∂p = q × ∂L/∂f and ∂L/∂q = ∂L/∂f × p.
    d_b, d_c = cross(edges[1], d_face), cross(d_face, edges[0])
    d_a = scale(add(d_b, d_c), -1.0)
    return d_smooth, d_to_viewer, (d_a, d_b, d_c), blend < 1


@triton.jit(do_not_specialize=["view_pixels", "count"])
def _forward(
    values, rast, pixel, faces, v_pos, camera, positions, normals, to_viewers, view_pixels, count,
    BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    pixel_index = tl.load(pixel + index, mask=mask, other=0)
    position, vectors, _, _ = load_pixels(values, rast, pixel_index, faces, v_pos, camera, mask, view_pixels)
    view, _ = unit(vectors[2])
    row = 3 * index.to(tl.int64)
    store_vec3(positions + row, position, mask)
    store_vec3(to_viewers + row, view, mask)
    if normals is not None:
        store_vec3(normals + row, shading_normal(vectors), mask)


@triton.jit(do_not_specialize=["view_pixels", "count"])
def _backward(
    values, rast, pixel, faces, v_pos, camera, grad_position, grad_normal, grad_to_viewer,
    grad_values, grad_v_pos, view_pixels, count, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the covered pixels of grad_values [B*H*W,6], and add the gradients of the vertex positions to
    grad_v_pos [V,3], which must be zero at the start.

    An input gradient of None counts as 0. An output gradient of None is not computed.
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    row = 3 * index.to(tl.int64)
    pixel_index = tl.load(pixel + index, mask=mask, other=0)
    position, vectors, vertices, edges = load_pixels(
        values, rast, pixel_index, faces, v_pos, camera, mask, view_pixels
    )
    zero = scale(position, 0.0)
    d_normal, d_view, d_position = zero, zero, zero
    if grad_normal is not None:
        d_normal = load_vec3(grad_normal + row, mask)
    if grad_to_viewer is not None:
        d_view = load_vec3(grad_to_viewer + row, mask)
    if grad_position is not None:
        d_position = load_vec3(grad_position + row, mask)
    d_smooth, d_to_viewer, d_corners, grazing = shading_normal_backward(vectors, edges, d_normal, d_view)
    if grad_values is not None:
        store_vec3(grad_values + 6 * pixel_index, subtract(d_position, d_to_viewer), mask)
        store_vec3(grad_values + 6 * pixel_index + 3, d_smooth, mask)
    if grad_v_pos is not None:
        add_to_corners(grad_v_pos, vertices, d_corners[0], d_corners[1], d_corners[2], mask & grazing)


def surface_points(
    values: Float[Tensor, "B H W 6"],
    rast: Float[Tensor, "B H W 4"],
    pixel: Int[Tensor, " N"],
    faces: Int[Tensor, "F 3"],
    v_pos: Float[Tensor, "V 3"],
    camera: Float[Tensor, "B 3"],
    *,
    normals: bool = True,
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"] | None, Float[Tensor, "N 3"]]:
    """Return position, normal and to_viewer at the covered pixels; see gbuffer.surface_points.

    All tensors are float32 except pixel, which is int64 and has no duplicates. The results are differentiable
    with respect to values and v_pos.
    """
    return _SurfacePoints.apply(values, rast.detach(), pixel, faces, v_pos, camera, normals)


class _SurfacePoints(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, rast, pixel, faces, v_pos, camera, normals):
        inputs = [tensor.contiguous() for tensor in (values, rast, pixel, faces, v_pos, camera)]
        position, to_viewer = (values.new_empty(len(pixel), 3) for _ in range(2))
        normal = torch.empty_like(position) if normals else None
        outputs = position, normal, to_viewer
        if len(pixel):
            with torch.cuda.device_of(values):
                grid = (triton.cdiv(len(pixel), BLOCK),)
                _forward[grid](*inputs, *outputs, rast.shape[1] * rast.shape[2], len(pixel), **OPTIONS)
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        inputs = values, rast, pixel, _, v_pos, _ = ctx.saved_tensors
        grads = (None if grad is None else grad.contiguous() for grad in grads)
        grad_values = torch.zeros_like(values) if ctx.needs_input_grad[0] else None
        grad_v_pos = torch.zeros_like(v_pos) if ctx.needs_input_grad[4] else None
        if len(pixel):
            with torch.cuda.device_of(values):
                grid = (triton.cdiv(len(pixel), BLOCK),)
                sizes = rast.shape[1] * rast.shape[2], len(pixel)
                _backward[grid](*inputs, *grads, grad_values, grad_v_pos, *sizes, **OPTIONS)
        return grad_values, None, None, None, grad_v_pos, None, None
