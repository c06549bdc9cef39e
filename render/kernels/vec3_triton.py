"""3-vectors as triples of Triton values, shared by the kernels of meshes and surface points.

`there` is the mask of loads and stores; masked loads return 0. Square roots and quotients are rounded as in
torch.
"""

import triton
from triton import language as tl

# Number of points, faces or vertices per program.
BLOCK = 128
# Fused multiply-adds are disabled, so that a product that is 0 in the reference is also 0 here.
OPTIONS = {"BLOCK": BLOCK, "enable_fp_fusion": False}
# Lower bound of the divisor in safe_normalize.
SHORTEST = tl.constexpr(1e-10)


@triton.jit
def load_triple(place, there):
    x = tl.load(place, mask=there, other=0.0)
    y = tl.load(place + 1, mask=there, other=0.0)
    z = tl.load(place + 2, mask=there, other=0.0)
    return x, y, z


@triton.jit
def store_triple(place, value, there):
    tl.store(place, value[0], mask=there)
    tl.store(place + 1, value[1], mask=there)
    tl.store(place + 2, value[2], mask=there)


@triton.jit
def add_triple(place, value, there):
    """Add the vectors to memory atomically."""
    tl.atomic_add(place, value[0], mask=there, sem="relaxed")
    tl.atomic_add(place + 1, value[1], mask=there, sem="relaxed")
    tl.atomic_add(place + 2, value[2], mask=there, sem="relaxed")


@triton.jit
def plus(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@triton.jit
def minus(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@triton.jit
def times(a, factor):
    return a[0] * factor, a[1] * factor, a[2] * factor


@triton.jit
def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@triton.jit
def unit(vector):
    """The result of shade.normals.safe_normalize and the reciprocal length that scales the vector."""
    length = tl.sqrt_rn(dot(vector, vector))
    inverse = tl.div_rn(1.0, tl.maximum(length, SHORTEST))
    return times(vector, inverse), inverse


@triton.jit
def unit_backward(grad, direction, inverse):
    """Gradient of the vector from the gradient of its unit vector."""
    return times(minus(grad, times(direction, dot(grad, direction))), inverse)


@triton.jit
def load_corners(v_pos, vertices, there):
    """Positions of the three vertices of each face."""
    a = load_triple(v_pos + 3 * vertices[0].to(tl.int64), there)
    b = load_triple(v_pos + 3 * vertices[1].to(tl.int64), there)
    c = load_triple(v_pos + 3 * vertices[2].to(tl.int64), there)
    return a, b, c


@triton.jit
def add_to_corners(grad_v_pos, vertices, a, b, c, there):
    add_triple(grad_v_pos + 3 * vertices[0].to(tl.int64), a, there)
    add_triple(grad_v_pos + 3 * vertices[1].to(tl.int64), b, there)
    add_triple(grad_v_pos + 3 * vertices[2].to(tl.int64), c, there)
