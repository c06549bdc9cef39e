"""Triton kernels of rasterize. They compute the nearest face, u, v and z/w at each pixel, and the gradient.

The formulas, the order of operations and the precision (float64) are those of reference.py. Fused
multiply-adds must be disabled, so that the edge functions of two adjacent triangles are exact negatives, and
each pixel gets the same face as in reference.py.

Each pixel has a 64-bit key that consists of 39 bits of depth and 24 lower bits of face index. An atomic
minimum selects the nearest face. Depths within 2⁻³⁸ count as equal. At equal depth, the face with the
smallest index is selected.
"""

import triton
from triton import language as tl

FACE_BITS = tl.constexpr(24)
FACE_MASK = tl.constexpr(2**24 - 1)
DEPTH_STEPS = tl.constexpr(2.0**38)
# Key of a background pixel.
BACKGROUND_KEY = tl.constexpr(2**63 - 1)


@triton.jit
def cross(a, b):
    """Return a × b for tuples of three values."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@triton.jit
def evaluate_line(normal, x, y):
    """Return the value of a homogeneous line function at (x/w, y/w)."""
    return normal[0] * x + normal[1] * y + normal[2]


@triton.jit
def centre(index, size):
    """Return x/w (or y/w) of a pixel centre."""
    return (index.to(tl.float64) + 0.5) * 2 / size - 1


@triton.jit
def loop_centre(index, size, EXACT: tl.constexpr):
    """Return `centre(index, size)`.

    EXACT: whether `size` is a power of two. A product with 2 / size then has the same bits as the quotient.
    The product is faster, because the compiler computes 2 / size before the loop.
    """
    if EXACT:
        return (index.to(tl.float64) + 0.5) * (tl.full([], 2.0, tl.float64) / size) - 1
    else:
        return centre(index, size)


@triton.jit
def load_row(clip, vertex, mask):
    """Return (x, y, w) and z of vertices [N] in float64. Each vertex is loaded by one access."""
    pointer = clip + 4 * vertex.to(tl.int64)[:, None] + tl.arange(0, 4)[None, :]
    row = tl.load(pointer, mask=mask[:, None], other=0.0).to(tl.float64)
    xz, yw = tl.split(tl.reshape(row, [row.shape[0], 2, 2]))
    x, z = tl.split(xz)
    y, w = tl.split(yw)
    return (x, y, w), z


@triton.jit
def load_corner(clip, vertex, mask):
    """Return (x, y, w) and z of a vertex in float64."""
    pointer = clip + 4 * vertex.to(tl.int64)
    x = tl.load(pointer, mask=mask, other=0.0).to(tl.float64)
    y = tl.load(pointer + 1, mask=mask, other=0.0).to(tl.float64)
    z = tl.load(pointer + 2, mask=mask, other=0.0).to(tl.float64)
    w = tl.load(pointer + 3, mask=mask, other=0.0).to(tl.float64)
    return (x, y, w), z


@triton.jit
def load_face(faces, face, mask):
    """Return the three vertex indices of a face."""
    pointer = faces + 3 * face.to(tl.int64)
    i = tl.load(pointer, mask=mask, other=0)
    j = tl.load(pointer + 1, mask=mask, other=0)
    k = tl.load(pointer + 2, mask=mask, other=0)
    return i, j, k


@triton.jit
def is_top_left(n):
    """Return whether an inward edge normal n satisfies the top-left rule. Exactly one of n and −n does."""
    return (n[0] > 0) | ((n[0] == 0) & ((n[1] > 0) | ((n[1] == 0) & (n[2] > 0))))


@triton.jit
def pixel_range(p, q, r, size):
    """Return the first and last pixel whose centre is within the range of three coordinates x/w (or y/w)."""
    half = size * 0.5
    low = (tl.minimum(tl.minimum(p, q), r) + 1) * half - 0.5
    high = (tl.maximum(tl.maximum(p, q), r) + 1) * half - 0.5
    # The tolerance of 1e-6 includes centres that lie exactly on the outline. Values are clamped before the
    # conversion to integers, because they may be as large as 1e30.
    first = tl.ceil(tl.minimum(tl.maximum(low - 1e-6, 0.0), size * 1.0))
    last = tl.floor(tl.maximum(tl.minimum(high + 1e-6, size - 1.0), -1.0))
    return first.to(tl.int32), last.to(tl.int32)


@triton.jit
def set_up_triangles(corners, depths, mask, height, width):
    """Return inward edge normals, depths, (|det|, 1 / |det|), and the box (left, top, columns, rows)."""
    a, b, c = corners
    n0, n1, n2 = cross(b, c), cross(c, a), cross(a, b)
    det = a[0] * n0[0] + a[1] * n0[1] + a[2] * n0[2]
    sign = tl.where(det < 0, -1.0, 1.0).to(tl.float64)
    n0 = (n0[0] * sign, n0[1] * sign, n0[2] * sign)
    n1 = (n1[0] * sign, n1[1] * sign, n1[2] * sign)
    n2 = (n2[0] * sign, n2[1] * sign, n2[2] * sign)
    det = tl.abs(det)

    in_front = (a[2] > 0) & (b[2] > 0) & (c[2] > 0)
    one = tl.full([], 1.0, tl.float64)
    # Products with reciprocals are accurate enough, because their errors are far below the tolerance of
    # pixel_range.
    ra, rb, rc = (
        one / tl.where(in_front, a[2], 1.0),
        one / tl.where(in_front, b[2], 1.0),
        one / tl.where(in_front, c[2], 1.0),
    )
    left, right = pixel_range(a[0] * ra, b[0] * rb, c[0] * rc, width)
    top, bottom = pixel_range(a[1] * ra, b[1] * rb, c[1] * rc, height)
    # The projection of a triangle that extends behind the camera is unbounded, so its box is the whole image.
    left, top = tl.where(in_front, left, 0), tl.where(in_front, top, 0)
    right, bottom = tl.where(in_front, right, width - 1), tl.where(in_front, bottom, height - 1)
    valid = (det > 0) & (det < float("inf")) & ((a[2] > 0) | (b[2] > 0) | (c[2] > 0)) & mask
    columns = tl.where(valid, tl.maximum(right - left + 1, 0), 0)
    rows = tl.where(valid, tl.maximum(bottom - top + 1, 0), 0)
    inverse = one / tl.where(valid, det, 1.0)
    return (n0, n1, n2), depths, (det, inverse), (left, top, columns, rows)


@triton.jit
def load_triangles(clip, faces, face, mask, height, width):
    """Load the corners of faces and return the result of set_up_triangles."""
    i, j, k = load_face(faces, face, mask)
    a, az = load_corner(clip, i, mask)
    b, bz = load_corner(clip, j, mask)
    c, cz = load_corner(clip, k, mask)
    return set_up_triangles((a, b, c), (az, bz, cz), mask, height, width)


@triton.jit
def draw_pixel(
    keys, face, normals, depths, determinant, row, column, height, width, mask, EXACT: tl.constexpr
):  # fmt: skip
    """Store the face in the pixel if it covers the centre at a visible depth and no nearer face is stored.

    The depth is a product of `scaled` and 1 / |det|. Its error is far below the depth step of the key.
    `scaled` is compared with |det|, which has the same result as comparing the quotient with 1.
    """
    det, inverse = determinant
    x, y = loop_centre(column, width, EXACT), loop_centre(row, height, EXACT)
    e0, e1, e2 = (
        evaluate_line(normals[0], x, y),
        evaluate_line(normals[1], x, y),
        evaluate_line(normals[2], x, y),
    )
    hit = mask & ((e0 > 0) | ((e0 == 0) & is_top_left(normals[0])))
    hit = hit & ((e1 > 0) | ((e1 == 0) & is_top_left(normals[1])))
    hit = hit & ((e2 > 0) | ((e2 == 0) & is_top_left(normals[2])))
    scaled = e0 * depths[0] + e1 * depths[1] + e2 * depths[2]
    hit = hit & (e0 + e1 + e2 > 0) & (tl.abs(scaled) <= det)
    step = tl.floor((tl.where(hit, scaled * inverse, 0.0) + 1) * DEPTH_STEPS + 0.5)
    step = tl.minimum(step, 2 * DEPTH_STEPS - 1).to(tl.int64)
    key = (step << FACE_BITS) | face.to(tl.int64)
    tl.atomic_min(keys + row.to(tl.int64) * width + column, key, mask=hit, sem="relaxed")


@triton.jit(do_not_specialize=["face_count", "vertex_count"])
def draw_small_faces(
    clip, faces, keys, list_items, counts, face_count, vertex_count, height, width,
    SMALL: tl.constexpr, MEDIUM: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Draw faces with a bounding box of at most SMALL pixels, and list the others.

    Listed faces with a box of at most MEDIUM pixels fill list_items forwards from its start. Larger faces
    fill it backwards from its end. Grid: (blocks of faces, views). keys [B,H,W] int64; list_items [B·F]
    int64; counts [2] int32.
    """
    view = tl.program_id(1).to(tl.int64)
    face = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    clip += view * vertex_count * 4
    keys += view * height * width
    mask = face < face_count
    i, j, k = load_face(faces, face, mask)
    a, az = load_row(clip, i, mask)
    b, bz = load_row(clip, j, mask)
    c, cz = load_row(clip, k, mask)
    normals, depths, det, box = set_up_triangles((a, b, c), (az, bz, cz), mask, height, width)
    left, top, columns, rows = box
    pixels = columns * rows
    number = view * face_count + face
    is_large, is_medium = pixels > MEDIUM, (pixels > SMALL) & (pixels <= MEDIUM)
    if tl.max(pixels) > SMALL:
        tl.store(list_items + next_list_indices(counts, is_medium), number, mask=is_medium)
        last = tl.num_programs(1).to(tl.int64) * face_count - 1
        tl.store(list_items + last - next_list_indices(counts + 1, is_large), number, mask=is_large)
    pixels = tl.where(pixels > SMALL, 0, pixels)
    column, row = left, top
    for step in range(0, tl.max(pixels)):
        draw_pixel(keys, face, normals, depths, det, row, column, height, width, step < pixels, EXACT)
        column += 1
        row_ends = column >= left + columns
        column = tl.where(row_ends, left, column)
        row += row_ends.to(tl.int32)


@triton.jit
def next_list_indices(count, selected):
    """Return a free list index for each selected face. `count` is atomically increased by the number of
    selected faces.
    """
    selected = selected.to(tl.int32)
    found = tl.sum(selected)
    first = tl.atomic_add(count, found, mask=found > 0, sem="relaxed")
    return (first + tl.cumsum(selected, 0) - 1).to(tl.int64)


@triton.jit(do_not_specialize=["face_count", "vertex_count", "batch"])
def draw_listed_faces(
    clip, faces, keys, list_items, counts, face_count, vertex_count, batch, height, width,
    LARGE: tl.constexpr, EXACT: tl.constexpr, ITEMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Draw the listed faces, either the medium or the large ones, in tiles of their bounding boxes.

    A block processes several faces, rows and columns. Grid: any (p, q), where p programs share the faces and
    q programs share the tiles of each face.
    """
    count = tl.load(counts + LARGE)
    for begin in range(tl.program_id(0) * ITEMS, count, tl.num_programs(0) * ITEMS):
        item = begin + tl.arange(0, ITEMS)[:, None, None]
        index = item.to(tl.int64)
        if LARGE:
            index = batch.to(tl.int64) * face_count - 1 - index
        number = tl.load(list_items + index, mask=item < count, other=0)
        view, face = number // face_count, number % face_count
        view_keys = keys + view * height * width
        normals, depths, det, box = load_triangles(
            clip + view * vertex_count * 4, faces, face, item < count, height, width
        )
        left, top, columns, rows = box
        across = tl.maximum(tl.cdiv(columns, COLUMNS), 1)
        for tile in range(tl.program_id(1), tl.max(across * tl.cdiv(rows, ROWS)), tl.num_programs(1)):
            down = (tile // across) * ROWS + tl.arange(0, ROWS)[None, :, None]
            right = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)[None, None, :]
            mask = (down < rows) & (right < columns)
            row, column = top + down, left + right
            draw_pixel(view_keys, face, normals, depths, det, row, column, height, width, mask, EXACT)


@triton.jit
def load_pixel_triangles(clip, faces, face, pixel, covered, vertex_count, height, width):
    """Return vertices, corners (x, y, w) and depths of each pixel's face, the pixel centre, and the view."""
    view = pixel // (height * width)
    image_pixel = pixel % (height * width)
    x, y = centre(image_pixel % width, width), centre(image_pixel // width, height)
    clip += view * vertex_count * 4
    i, j, k = load_face(faces, face, covered)
    a, az = load_corner(clip, i, covered)
    b, bz = load_corner(clip, j, covered)
    c, cz = load_corner(clip, k, covered)
    return (i, j, k), (a, b, c), (az, bz, cz), (x, y), view


@triton.jit(do_not_specialize=["vertex_count"])
def resolve(
    clip, faces, keys, rast, vertex_count, pixel_count, height, width, BLOCK: tl.constexpr
):  # fmt: skip
    """Write rast [B,H,W,4] from the key of each pixel."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixel_count
    key = tl.load(keys + pixel, mask=inside, other=BACKGROUND_KEY)
    covered = key != BACKGROUND_KEY
    face = tl.where(covered, key & FACE_MASK, 0)
    _, corners, depths, point, _ = load_pixel_triangles(
        clip, faces, face, pixel, covered, vertex_count, height, width
    )
    a, b, c = corners
    x, y = point
    n0, n1, n2 = cross(b, c), cross(c, a), cross(a, b)
    e0, e1, e2 = evaluate_line(n0, x, y), evaluate_line(n1, x, y), evaluate_line(n2, x, y)
    total = tl.where(covered, e0 + e1 + e2, 1.0)
    det = tl.where(covered, a[0] * n0[0] + a[1] * n0[1] + a[2] * n0[2], 1.0)
    z = (e0 * depths[0] + e1 * depths[1] + e2 * depths[2]) / det
    out = rast + pixel * 4
    tl.store(out, e0 / total, mask=inside)
    tl.store(out + 1, e1 / total, mask=inside)
    tl.store(out + 2, z, mask=inside)
    tl.store(out + 3, tl.where(covered, face + 1, 0), mask=inside)


@triton.jit
def add_corner_gradient(grad_clip, vertex, point, cotangent, mask):
    """Add p × cotangent to the gradient of x, y, w of a vertex, where p is the pixel centre."""
    gx, gy, gw = cross((point[0], point[1], 1.0), cotangent)
    target = grad_clip + 4 * vertex.to(tl.int64)
    tl.atomic_add(target, gx, mask=mask, sem="relaxed")
    tl.atomic_add(target + 1, gy, mask=mask, sem="relaxed")
    tl.atomic_add(target + 3, gw, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["vertex_count"])
def resolve_backward(
    clip, faces, rast, grad_rast, grad_clip, vertex_count, pixel_count, height, width, BLOCK: tl.constexpr
):  # fmt: skip
    """Compute the gradient with respect to x, y, w of the corners from the gradient with respect to u and v
    in grad_rast, and add it to grad_clip [B,V,4] (float64).

    As in numba/triangles.py, ∂L/∂v₀ = p × (g₁ v₂ − g₂ v₁) with gᵢ = ∂L/∂eᵢ. The gradients of v₁ and v₂ follow
    by cyclic permutation of the indices.
    """
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixel_count
    face = tl.load(rast + 4 * pixel + 3, mask=inside, other=0.0).to(tl.int32) - 1
    grad_u = tl.load(grad_rast + 4 * pixel, mask=face >= 0, other=0.0).to(tl.float64)
    grad_v = tl.load(grad_rast + 4 * pixel + 1, mask=face >= 0, other=0.0).to(tl.float64)
    mask = (grad_u != 0) | (grad_v != 0)
    vertices, corners, _, point, view = load_pixel_triangles(
        clip, faces, face, pixel, mask, vertex_count, height, width
    )
    a, b, c = corners
    x, y = point
    e0, e1, e2 = (
        evaluate_line(cross(b, c), x, y),
        evaluate_line(cross(c, a), x, y),
        evaluate_line(cross(a, b), x, y),
    )
    total = tl.where(mask, e0 + e1 + e2, 1.0)
    mean = (grad_u * e0 + grad_v * e1) / total
    g0, g1, g2 = (grad_u - mean) / total, (grad_v - mean) / total, -mean / total
    grad_clip += view * vertex_count * 4
    cotangent = (g1 * c[0] - g2 * b[0], g1 * c[1] - g2 * b[1], g1 * c[2] - g2 * b[2])
    add_corner_gradient(grad_clip, vertices[0], point, cotangent, mask)
    cotangent = (g2 * a[0] - g0 * c[0], g2 * a[1] - g0 * c[1], g2 * a[2] - g0 * c[2])
    add_corner_gradient(grad_clip, vertices[1], point, cotangent, mask)
    cotangent = (g0 * b[0] - g1 * a[0], g0 * b[1] - g1 * a[1], g0 * b[2] - g1 * a[2])
    add_corner_gradient(grad_clip, vertices[2], point, cotangent, mask)
