"""CUDA kernels of mesh.smooth_normals: two for the forward pass, one for the backward pass.

The normals and gradients of faces are added to the vertices atomically, so the last bits of the result vary
between runs, as with index_add_. Each sum is stored in a row of four numbers, because one atomic operation
adds four numbers.
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
    add_vec4,
    dot,
    load_corners,
    load_vec3,
    scale,
    store_vec3,
    subtract,
)
from render.raster.triton.triangles import cross, load_face

# A vertex normal is undefined if the squared length of its sum of face normals is at most this value. It is
# then set to +z.
DEGENERATE = tl.constexpr(1e-20)


@triton.jit
def _add_to_corners(rows, vertices, a, b, c, mask):
    """Add the vectors a, b, c of the corners of each face to the rows [V,4] of its vertices."""
    zero = tl.zeros_like(a[0])
    add_vec4(rows + 4 * vertices[0].to(tl.int64), a[0], a[1], a[2], zero, mask)
    add_vec4(rows + 4 * vertices[1].to(tl.int64), b[0], b[1], b[2], zero, mask)
    add_vec4(rows + 4 * vertices[2].to(tl.int64), c[0], c[1], c[2], zero, mask)


@triton.jit(do_not_specialize=["count"])
def _sum_faces(v_pos, faces, summed, count, BLOCK: tl.constexpr):
    """Add the area-weighted normal of each face to the rows of its vertices in summed [V,4], which starts at
    zero.
    """
    face = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = face < count
    vertices = load_face(faces, face, mask)
    a, b, c = load_corners(v_pos, vertices, mask)
    weighted = cross(subtract(b, a), subtract(c, a))
    _add_to_corners(summed, vertices, weighted, weighted, weighted, mask)


@triton.jit
def _direction(summed):
    """Return whether the sum has a direction, its unit vector and its length. If the sum has no direction,
    the unit vector is +z and the length is 1.
    """
    squared = dot(summed, summed)
    valid = squared > DEGENERATE
    length = tl.sqrt_rn(tl.where(valid, squared, 1.0))
    x = tl.where(valid, tl.div_rn(summed[0], length), 0.0)
    y = tl.where(valid, tl.div_rn(summed[1], length), 0.0)
    z = tl.where(valid, tl.div_rn(summed[2], length), 1.0)
    return valid, (x, y, z), length


@triton.jit(do_not_specialize=["count"])
def _normalize(summed, normals, count, BLOCK: tl.constexpr):
    vertex = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = vertex < count
    row = vertex.to(tl.int64)
    _, direction, _ = _direction(load_vec3(summed + 4 * row, mask))
    store_vec3(normals + 3 * row, direction, mask)


@triton.jit
def _normalize_backward(summed, grad, vertex, mask):
    """Return the gradient of a vertex's sum, given the gradient of its normal. This gradient is computed
    again for each face of the vertex, because storing it would need another kernel launch.
    """
    row = vertex.to(tl.int64)
    valid, direction, length = _direction(load_vec3(summed + 4 * row, mask))
    cotangent = load_vec3(grad + 3 * row, mask)
    tangential = subtract(cotangent, scale(direction, dot(cotangent, direction)))
    x = tl.where(valid, tl.div_rn(tangential[0], length), 0.0)
    y = tl.where(valid, tl.div_rn(tangential[1], length), 0.0)
    z = tl.where(valid, tl.div_rn(tangential[2], length), 0.0)
    return x, y, z


@triton.jit(do_not_specialize=["count"])
def _backward(v_pos, faces, summed, grad, grad_v_pos, count, BLOCK: tl.constexpr):
    """Add the gradient to grad_v_pos [V,4], which starts at zero. For a face normal f = p × q: ∂L/∂p = q ×
    ∂L/∂f, ∂L/∂q = ∂L/∂f × p.
    """
    face = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = face < count
    vertices = load_face(faces, face, mask)
    a, b, c = load_corners(v_pos, vertices, mask)
    d_face = _normalize_backward(summed, grad, vertices[0], mask)
    d_face = add(d_face, _normalize_backward(summed, grad, vertices[1], mask))
    d_face = add(d_face, _normalize_backward(summed, grad, vertices[2], mask))
    d_b, d_c = cross(subtract(c, a), d_face), cross(d_face, subtract(b, a))
    d_a = scale(add(d_b, d_c), -1.0)
    _add_to_corners(grad_v_pos, vertices, d_a, d_b, d_c, mask)


def smooth_normals(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "V 3"]:
    """Return mesh.smooth_normals for float32 positions and faces of any integer type."""
    return _SmoothNormals.apply(v_pos, faces)


class _SmoothNormals(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v_pos, faces):
        v_pos, faces = v_pos.contiguous(), faces.contiguous()
        summed, normals = v_pos.new_zeros(len(v_pos), 4), torch.empty_like(v_pos)
        with torch.cuda.device_of(v_pos):
            if len(faces):
                grid = (triton.cdiv(len(faces), BLOCK),)
                _sum_faces[grid](v_pos, faces, summed, len(faces), **OPTIONS)
            if len(v_pos):
                grid = (triton.cdiv(len(v_pos), BLOCK),)
                _normalize[grid](summed, normals, len(v_pos), **OPTIONS)
        ctx.save_for_backward(v_pos, faces, summed)
        return normals

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        v_pos, faces, summed = ctx.saved_tensors
        grad_v_pos = v_pos.new_zeros(len(v_pos), 4)
        if len(faces):
            with torch.cuda.device_of(v_pos):
                grid = (triton.cdiv(len(faces), BLOCK),)
                _backward[grid](v_pos, faces, summed, grad.contiguous(), grad_v_pos, len(faces), **OPTIONS)
        return grad_v_pos[:, :3], None
