"""Fused CUDA kernels for `DMTet.crossings`, which compute the surface vertices from the network output.

The forward and the backward kernel each replace about twenty tensor operations. The gradients of edge ends
are summed with atomic additions, so their last bits vary between runs, as with index_add_.
"""

import torch
import triton
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import language as tl

from render.kernels.vec3_triton import (
    BLOCK,
    OPTIONS,
    add,
    add_vec4,
    dot,
    load_vec3,
    scale,
    store_vec3,
    subtract,
)


@triton.jit
def _edge_ends(ends, edge, mask):
    """Return both ends of an edge as indices into the list of vertices of crossed edges."""
    return tl.load(ends + 2 * edge, mask=mask, other=0), tl.load(ends + 2 * edge + 1, mask=mask, other=0)


@triton.jit
def _end(raw, level, v_pos, vertices, row, reach, mask):
    """Return vertex index, field value, moved position and tanh of the raw offset for one end of an edge."""
    vertex = tl.load(vertices + row, mask=mask, other=0)
    # tanh is computed with sigmoid, because every Triton backend has sigmoid. The error of an offset is below
    # 1e-7 · reach.
    x, y, z = load_vec3(raw + 4 * row + 1, mask)
    tanh_offset = 2 * tl.sigmoid(2 * x) - 1, 2 * tl.sigmoid(2 * y) - 1, 2 * tl.sigmoid(2 * z) - 1
    position = add(load_vec3(v_pos + 3 * vertex, mask), scale(tanh_offset, reach))
    return vertex, tl.load(level + vertex, mask=mask, other=0.0), position, tanh_offset


@triton.jit(do_not_specialize=["count"])
def _cross(raw, level, v_pos, vertices, ends, points, reach, count, BLOCK: tl.constexpr):
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = edge < count
    start, end = _edge_ends(ends, edge, mask)
    _, s, p, _ = _end(raw, level, v_pos, vertices, start, reach, mask)
    _, t, q, _ = _end(raw, level, v_pos, vertices, end, reach, mask)
    # s and t have different signs, so their difference is never zero.
    fraction = s / tl.where(mask, s - t, 1.0)
    store_vec3(points + 3 * edge, add(p, scale(subtract(q, p), fraction)), mask)


@triton.jit
def _add_gradient(grad, raw, on_wall, vertex, row, grad_level, grad_point, tanh_offset, reach, mask):
    """Add the gradient of one edge end to the vertex's row of grad [U,4].

    If a negative field value was replaced because the vertex is on the boundary of the grid, the field at
    this vertex gets no gradient.
    """
    walled = tl.load(on_wall + vertex, mask=mask, other=0) != 0
    clamped = walled & (tl.load(raw + 4 * row, mask=mask, other=0.0) < 0)
    x, y, z = tanh_offset
    grad_x = grad_point[0] * reach * (1 - x * x)
    grad_y = grad_point[1] * reach * (1 - y * y)
    grad_z = grad_point[2] * reach * (1 - z * z)
    add_vec4(grad + 4 * row, tl.where(clamped, 0.0, grad_level), grad_x, grad_y, grad_z, mask)


@triton.jit(do_not_specialize=["count"])
def _cross_backward(
    raw, level, v_pos, on_wall, vertices, ends, grad_output, grad, reach, count, BLOCK: tl.constexpr
):  # fmt: skip
    """Add the gradients of the crossings p + f (q − p) to grad [U,4].

    p and q are the ends of an edge, s and t are the field values there, and f = s / (s − t).

    The derivatives are ∂f/∂s = −t / (s − t)² and ∂f/∂t = s / (s − t)².
    """
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    grad_point = load_vec3(grad_output + 3 * edge, edge < count)
    # Edges without gradient are skipped. The spare rows of a pending mesh are among them. They all refer to
    # one edge, and many atomic additions to one address are slow.
    mask = (edge < count) & ((grad_point[0] != 0) | (grad_point[1] != 0) | (grad_point[2] != 0))
    start, end = _edge_ends(ends, edge, mask)
    vertex, s, p, tanh_offset = _end(raw, level, v_pos, vertices, start, reach, mask)
    other, t, q, tanh_offset_other = _end(raw, level, v_pos, vertices, end, reach, mask)
    gap = tl.where(mask, s - t, 1.0)
    fraction = s / gap
    along = dot(grad_point, subtract(q, p)) / (gap * gap)
    near, far = scale(grad_point, 1 - fraction), scale(grad_point, fraction)
    _add_gradient(grad, raw, on_wall, vertex, start, -along * t, near, tanh_offset, reach, mask)
    _add_gradient(grad, raw, on_wall, other, end, along * s, far, tanh_offset_other, reach, mask)


def crossings(
    raw: Float[Tensor, "U 4"],
    level: Float[Tensor, " V"],
    v_pos: Float[Tensor, "V 3"],
    on_wall: Bool[Tensor, " V"],
    vertices: Int[Tensor, " U"],
    ends: Int[Tensor, "N 2"],
    reach: float,
) -> Float[Tensor, "N 3"]:
    """Return the result of `DMTet.crossings`.

    raw: the network output (s, d) [U,4] at the vertices of crossed edges: field and offset. The result is
    differentiable with respect to raw.

    level: the field at all vertices, which determines the topology. The crossings are computed from level,
    and their gradient is passed to s.
    """
    return _Crossings.apply(raw, level, v_pos, on_wall, vertices, ends, reach)


class _Crossings(torch.autograd.Function):
    @staticmethod
    def forward(ctx, raw, level, v_pos, on_wall, vertices, ends, reach):
        raw, level, v_pos = raw.contiguous(), level.contiguous(), v_pos.contiguous()
        on_wall, vertices, ends = on_wall.contiguous(), vertices.contiguous(), ends.contiguous()
        points = raw.new_empty(len(ends), 3)
        ctx.save_for_backward(raw, level, v_pos, on_wall, vertices, ends)
        ctx.reach = reach
        if len(ends):
            with torch.cuda.device_of(raw):
                _cross[(triton.cdiv(len(ends), BLOCK),)](
                    raw, level, v_pos, vertices, ends, points, reach, len(ends), **OPTIONS
                )
        return points

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        raw, level, v_pos, on_wall, vertices, ends = ctx.saved_tensors
        grad = torch.zeros_like(raw)
        if len(ends):
            with torch.cuda.device_of(raw):
                _cross_backward[(triton.cdiv(len(ends), BLOCK),)](
                    raw, level, v_pos, on_wall.view(torch.uint8), vertices, ends,
                    grad_output.contiguous(), grad, ctx.reach, len(ends), **OPTIONS,
                )  # fmt: skip
        return grad, None, None, None, None, None, None
