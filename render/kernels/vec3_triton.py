"""Operations on 3-vectors for the kernels of meshes and surface points. A vector is a tuple of three values.

Masked loads return 0. Square roots and quotients are rounded as in torch.
"""

import triton
from triton import language as tl

from render.shade import normals

# Number of points, faces or vertices per program.
BLOCK = 128
# Fused multiply-adds are disabled, so that a dot or cross product that is 0 in the reference is also 0 here.
OPTIONS = {"BLOCK": BLOCK, "enable_fp_fusion": False}
MIN_LENGTH = tl.constexpr(normals.MIN_LENGTH)


@triton.jit
def load_vec3(pointer, mask):
    x = tl.load(pointer, mask=mask, other=0.0)
    y = tl.load(pointer + 1, mask=mask, other=0.0)
    z = tl.load(pointer + 2, mask=mask, other=0.0)
    return x, y, z


@triton.jit
def store_vec3(pointer, value, mask):
    tl.store(pointer, value[0], mask=mask)
    tl.store(pointer + 1, value[1], mask=mask)
    tl.store(pointer + 2, value[2], mask=mask)


@triton.jit
def add_vec3(pointer, value, mask):
    """Add the vectors to memory atomically."""
    tl.atomic_add(pointer, value[0], mask=mask, sem="relaxed")
    tl.atomic_add(pointer + 1, value[1], mask=mask, sem="relaxed")
    tl.atomic_add(pointer + 2, value[2], mask=mask, sem="relaxed")


@triton.jit
def rows_of_four(x, y, z, w):
    """Return a block [N,4] with the given columns [N]."""
    return tl.reshape(tl.join(tl.join(x, z), tl.join(y, w)), [x.shape[0], 4])


@triton.jit
def add_vec4(pointer, x, y, z, w, mask):
    """Add rows of four floats to memory atomically, by one operation of 16 bytes per row."""
    rows = rows_of_four(x, y, z, w)
    pointers = pointer[:, None] + tl.arange(0, 4)[None, :]
    tl.atomic_add(pointers, rows, mask=mask[:, None], sem="relaxed")


@triton.jit
def add(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@triton.jit
def subtract(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@triton.jit
def scale(a, factor):
    return a[0] * factor, a[1] * factor, a[2] * factor


@triton.jit
def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@triton.jit
def unit(vector):
    """Return the unit vector, as shade.normals.safe_normalize does, and the factor of its gradient.

    The factor is 1 / length. For a vector of at most MIN_LENGTH, the factor is 0.
    """
    length = tl.sqrt_rn(dot(vector, vector))
    inverse = tl.div_rn(1.0, tl.maximum(length, MIN_LENGTH))
    return scale(vector, inverse), tl.where(length > MIN_LENGTH, inverse, 0.0)


@triton.jit
def unit_backward(grad_unit, direction, factor):
    """Return the gradient of a vector, given the gradient of its unit vector and the factor from `unit`."""
    return scale(subtract(grad_unit, scale(direction, dot(grad_unit, direction))), factor)


@triton.jit
def load_corners(v_pos, vertices, mask):
    """Return the positions of the three vertices of each face."""
    a = load_vec3(v_pos + 3 * vertices[0].to(tl.int64), mask)
    b = load_vec3(v_pos + 3 * vertices[1].to(tl.int64), mask)
    c = load_vec3(v_pos + 3 * vertices[2].to(tl.int64), mask)
    return a, b, c


@triton.jit
def add_to_corners(grad_v_pos, vertices, a, b, c, mask):
    add_vec3(grad_v_pos + 3 * vertices[0].to(tl.int64), a, mask)
    add_vec3(grad_v_pos + 3 * vertices[1].to(tl.int64), b, mask)
    add_vec3(grad_v_pos + 3 * vertices[2].to(tl.int64), c, mask)
