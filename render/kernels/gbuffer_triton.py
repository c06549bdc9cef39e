"""Fused CUDA kernels of gbuffer.surface_points, one for each direction.

The gradients of vertices are summed by atomic additions, so their last bits vary between runs, as with
index_add_. Only points at grazing angles contribute to them, because only those use the face normal.
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
    add_to_corners,
    dot,
    load_corners,
    load_triple,
    minus,
    plus,
    store_triple,
    times,
    unit,
    unit_backward,
)
from render.raster.triton.triangles import cross, load_face
from render.shade import normals

GRAZING = tl.constexpr(normals.GRAZING)


@triton.jit
def _seen(values, rast, pixel, faces, v_pos, camera, index, there, view_pixels):
    """Flat pixel; position; smooth, face and to_viewer before normalisation; face vertices and two edges."""
    spot = tl.load(pixel + index, mask=there, other=0)
    position = load_triple(values + 6 * spot, there)
    smooth = load_triple(values + 6 * spot + 3, there)
    # rast stores face index + 1.
    face = tl.load(rast + 4 * spot + 3, mask=there, other=1.0).to(tl.int32) - 1
    vertices = load_face(faces, face, there)
    a, b, c = load_corners(v_pos, vertices, there)
    p, q = minus(b, a), minus(c, a)
    to_viewer = minus(load_triple(camera + 3 * (spot // view_pixels), there), position)
    return spot, position, (smooth, cross(p, q), to_viewer), vertices, (p, q)


@triton.jit
def _bend(smooth, face, view):
    """shading_normal before normalisation: side ±1, view·smooth / GRAZING, its clamp to [0, 1], the blend."""
    side = tl.where(dot(face, view) < 0, -1.0, 1.0)
    share = tl.div_rn(dot(smooth, times(view, side)), GRAZING)
    blend = tl.minimum(tl.maximum(share, 0.0), 1.0)
    away = minus(smooth, face)
    # The formula of torch.lerp, which is exact at both ends.
    mixed = plus(face, times(away, blend))
    near = minus(smooth, times(away, 1 - blend))
    x = tl.where(blend < 0.5, mixed[0], near[0])
    y = tl.where(blend < 0.5, mixed[1], near[1])
    z = tl.where(blend < 0.5, mixed[2], near[2])
    return side, share, blend, (x, y, z)


@triton.jit(do_not_specialize=["view_pixels", "count"])
def _forward(
    values, rast, pixel, faces, v_pos, camera, positions, normals, to_viewers, view_pixels, count,
    BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = index < count
    _, position, vectors, _, _ = _seen(values, rast, pixel, faces, v_pos, camera, index, there, view_pixels)
    smooth, _ = unit(vectors[0])
    face, _ = unit(vectors[1])
    view, _ = unit(vectors[2])
    side, _, _, mixed = _bend(smooth, face, view)
    bent, _ = unit(times(mixed, side))
    row = 3 * index.to(tl.int64)
    store_triple(positions + row, position, there)
    store_triple(normals + row, bent, there)
    store_triple(to_viewers + row, view, there)


@triton.jit(do_not_specialize=["view_pixels", "count"])
def _backward(
    values, rast, pixel, faces, v_pos, camera, grad_position, grad_normal, grad_to_viewer,
    grad_values, grad_v_pos, view_pixels, count, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the covered pixels of grad_values [B*H*W,6] and add to grad_v_pos [V,3], which starts at zero.

    An input gradient of None counts as 0. An output gradient of None is not computed. The side (±1) has no
    gradient.
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = index < count
    row = 3 * index.to(tl.int64)
    spot, position, vectors, vertices, edges = _seen(
        values, rast, pixel, faces, v_pos, camera, index, there, view_pixels
    )
    smooth, per_smooth = unit(vectors[0])
    face, per_face = unit(vectors[1])
    view, per_view = unit(vectors[2])
    side, share, blend, mixed = _bend(smooth, face, view)
    none = times(position, 0.0)
    push, on_view, on_position = none, none, none
    if grad_normal is not None:
        push = load_triple(grad_normal + row, there)
    if grad_to_viewer is not None:
        on_view = load_triple(grad_to_viewer + row, there)
    if grad_position is not None:
        on_position = load_triple(grad_position + row, there)

    bent, per_bent = unit(times(mixed, side))
    push = times(unit_backward(push, bent, per_bent), side)
    free = (share >= 0) & (share <= 1)
    on_share = tl.where(free, tl.div_rn(dot(push, minus(smooth, face)), GRAZING), 0.0)
    on_view = plus(on_view, times(smooth, on_share * side))
    on_to_viewer = unit_backward(on_view, view, per_view)
    if grad_values is not None:
        on_smooth = plus(times(push, blend), times(view, on_share * side))
        store_triple(grad_values + 6 * spot, minus(on_position, on_to_viewer), there)
        store_triple(grad_values + 6 * spot + 3, unit_backward(on_smooth, smooth, per_smooth), there)
    if grad_v_pos is not None:
        on_face = unit_backward(times(push, 1 - blend), face, per_face)
        # With f = p × q: ∂L/∂p = q × ∂L/∂f, ∂L/∂q = ∂L/∂f × p.
        on_b, on_c = cross(edges[1], on_face), cross(on_face, edges[0])
        on_a = times(plus(on_b, on_c), -1.0)
        add_to_corners(grad_v_pos, vertices, on_a, on_b, on_c, there & (blend < 1))


def surface_points(
    values: Float[Tensor, "B H W 6"],
    rast: Float[Tensor, "B H W 4"],
    pixel: Int[Tensor, " N"],
    faces: Int[Tensor, "F 3"],
    v_pos: Float[Tensor, "V 3"],
    camera: Float[Tensor, "B 3"],
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """position, normal and to_viewer at the covered pixels; see gbuffer.surface_points.

    All float32 except pixel, which is int64 without duplicates. Gradients flow to values and v_pos.
    """
    return _SurfacePoints.apply(values, rast.detach(), pixel, faces, v_pos, camera)


class _SurfacePoints(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, rast, pixel, faces, v_pos, camera):
        given = [tensor.contiguous() for tensor in (values, rast, pixel, faces, v_pos, camera)]
        found = tuple(values.new_empty(len(pixel), 3) for _ in range(3))
        if len(pixel):
            with torch.cuda.device_of(values):
                grid = (triton.cdiv(len(pixel), BLOCK),)
                _forward[grid](*given, *found, rast.shape[1] * rast.shape[2], len(pixel), **OPTIONS)
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        given = values, rast, pixel, _, v_pos, _ = ctx.saved_tensors
        grads = (None if grad is None else grad.contiguous() for grad in grads)
        grad_values = torch.zeros_like(values) if ctx.needs_input_grad[0] else None
        grad_v_pos = torch.zeros_like(v_pos) if ctx.needs_input_grad[4] else None
        if len(pixel):
            with torch.cuda.device_of(values):
                grid = (triton.cdiv(len(pixel), BLOCK),)
                sizes = rast.shape[1] * rast.shape[2], len(pixel)
                _backward[grid](*given, *grads, grad_values, grad_v_pos, *sizes, **OPTIONS)
        return grad_values, None, None, None, grad_v_pos, None
