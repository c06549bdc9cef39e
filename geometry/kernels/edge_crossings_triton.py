"""From the network's answers at the vertices next to the surface to the surface's points, on CUDA: what
`DMTet.crossings` does in some twenty operations each way, in one kernel there and one back.

Edges add to the gradients of their ends atomically, so last bits differ from run to run, as index_add_'s do.
"""

import torch
import triton
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import language as tl

from render.kernels.vec3_triton import BLOCK, OPTIONS, dot, load_triple, minus, plus, store_triple, times


@triton.jit
def _places(ends, edge, there):
    """Both ends of an edge, as places among the vertices next to the surface."""
    return tl.load(ends + 2 * edge, mask=there, other=0), tl.load(ends + 2 * edge + 1, mask=there, other=0)


@triton.jit
def _end(raw, level, v_pos, vertices, place, reach, there):
    """A vertex next to the surface: its number, its level, where it has moved to, and tanh of how far."""
    vertex = tl.load(vertices + place, mask=there, other=0)
    # tanh by what every backend has; a move of 1e-7 of `reach` is nothing.
    x, y, z = load_triple(raw + 4 * place + 1, there)
    bend = 2 * tl.sigmoid(2 * x) - 1, 2 * tl.sigmoid(2 * y) - 1, 2 * tl.sigmoid(2 * z) - 1
    position = plus(load_triple(v_pos + 3 * vertex, there), times(bend, reach))
    return vertex, tl.load(level + vertex, mask=there, other=0.0), position, bend


@triton.jit(do_not_specialize=["count"])
def _cross(raw, level, v_pos, vertices, ends, points, reach, count, BLOCK: tl.constexpr):
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = edge < count
    start, end = _places(ends, edge, there)
    _, s, p, _ = _end(raw, level, v_pos, vertices, start, reach, there)
    _, t, q, _ = _end(raw, level, v_pos, vertices, end, reach, there)
    # One of the two is negative and the other is not: the difference is never zero.
    fraction = s / tl.where(there, s - t, 1.0)
    store_triple(points + 3 * edge, plus(p, times(minus(q, p), fraction)), there)


@triton.jit
def _push(grad, raw, on_wall, vertex, place, slope, push, bend, reach, there):
    """Adds to a vertex's row of grad [U,4]; the level of one that the wall holds outside does not move."""
    walled = tl.load(on_wall + vertex, mask=there, other=0) != 0
    held = walled & (tl.load(raw + 4 * place, mask=there, other=0.0) < 0)
    row = grad + 4 * place
    tl.atomic_add(row, slope, mask=there & ~held, sem="relaxed")
    tl.atomic_add(row + 1, push[0] * reach * (1 - bend[0] * bend[0]), mask=there, sem="relaxed")
    tl.atomic_add(row + 2, push[1] * reach * (1 - bend[1] * bend[1]), mask=there, sem="relaxed")
    tl.atomic_add(row + 3, push[2] * reach * (1 - bend[2] * bend[2]), mask=there, sem="relaxed")


@triton.jit(do_not_specialize=["count"])
def _cross_backward(
    raw, level, v_pos, on_wall, vertices, ends, pull, grad, reach, count, BLOCK: tl.constexpr
):  # fmt: skip
    """Of p + f (q − p) with f = s / (s − t): ∂f/∂s = −t / (s − t)², ∂f/∂t = s / (s − t)²."""
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = edge < count
    start, end = _places(ends, edge, there)
    vertex, s, p, bend = _end(raw, level, v_pos, vertices, start, reach, there)
    other, t, q, bend_other = _end(raw, level, v_pos, vertices, end, reach, there)
    gap = tl.where(there, s - t, 1.0)
    fraction = s / gap
    push = load_triple(pull + 3 * edge, there)
    along = dot(push, minus(q, p)) / (gap * gap)
    near, far = times(push, 1 - fraction), times(push, fraction)
    _push(grad, raw, on_wall, vertex, start, -along * t, near, bend, reach, there)
    _push(grad, raw, on_wall, other, end, along * s, far, bend_other, reach, there)


def crossings(
    raw: Float[Tensor, "U 4"],
    level: Float[Tensor, " V"],
    v_pos: Float[Tensor, "V 3"],
    on_wall: Bool[Tensor, " V"],
    vertices: Int[Tensor, " U"],
    ends: Int[Tensor, "N 2"],
    reach: float,
) -> Float[Tensor, "N 3"]:
    """See `DMTet.crossings`; differentiable in raw: s and d of the vertices next to the surface.

    level: the meshed field at all vertices; its values are taken, and the gradient goes to s.
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
    def backward(ctx, pull):
        raw, level, v_pos, on_wall, vertices, ends = ctx.saved_tensors
        grad = torch.zeros_like(raw)
        if len(ends):
            with torch.cuda.device_of(raw):
                _cross_backward[(triton.cdiv(len(ends), BLOCK),)](
                    raw, level, v_pos, on_wall.view(torch.uint8), vertices, ends, pull.contiguous(), grad,
                    ctx.reach, len(ends), **OPTIONS,
                )  # fmt: skip
        return grad, None, None, None, None, None, None
