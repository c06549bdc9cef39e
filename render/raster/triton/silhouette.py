"""Triton kernels that find the pixel pairs that silhouettes cross; see render/raster/silhouette.py.

The edges of a mesh are stored in a hash table. Half-edges are inserted by compare-and-swap. This method needs
no sorting, does not need the number of edges in advance, and allows any number of faces per edge.

For each face and view, each of the three edges is marked with the side on which the face lies. An edge with
marks of only one side is a silhouette. About a few percent of the edges are silhouettes. They are listed, and
their crossings with pixel rows or columns are computed.

`winners` [B,2,H,W] int64 contains the outermost crossing of each pixel pair, or −1 if there is none. The
indices are the axis and the first pixel of the pair. An entry consists of 36 bits for the distance from the
inner pixel, 26 bits for the slot of the edge, and one bit that is set if the inner pixel is the second pixel
of the pair.
"""

import triton
from triton import language as tl

from render.raster.triton.triangles import centre, cross, load_corner, load_face

EMPTY = tl.constexpr(-1)
# Number of views in one int32 of marks. Each view has two bits.
VIEWS_PER_WORD = tl.constexpr(16)
SLOT_BITS = tl.constexpr(26)
SLOT_MASK = tl.constexpr(2**26 - 1)
DISTANCE_STEPS = tl.constexpr(2.0**35)


@triton.jit(do_not_specialize=["half_edges"])
def insert_edges(faces, table, slots, half_edges, table_size, BLOCK: tl.constexpr):
    """Insert each edge into table [table_size] int64, which must be EMPTY at the start. The key of an edge is
    smaller vertex << 32 | larger vertex.

    slots [F,3] int32 receives the slot of the edge opposite each corner, or −1 if both ends of the edge are
    the same vertex. table_size must be a power of two above the number of edges.
    """
    half = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = half < half_edges
    face, corner = half // 3, half % 3
    start = tl.load(faces + 3 * face + (corner + 1) % 3, mask=mask, other=0).to(tl.int64)
    end = tl.load(faces + 3 * face + (corner + 2) % 3, mask=mask, other=0).to(tl.int64)
    valid = mask & (start != end)
    low, high = tl.minimum(start, end), tl.maximum(start, end)
    key = (low << 32) | high
    hashed = low * 0x9E3779B1 + high * 0x85EBCA77
    slot = ((hashed ^ (hashed >> 15)) * 0x2545F491 >> 16) & (table_size - 1)
    pending = valid
    while tl.max(pending.to(tl.int32)) > 0:
        # atomic_cas has no mask, so finished elements are compared with a value that never occurs.
        compare = tl.where(pending, EMPTY, -2).to(tl.int64)
        previous = tl.atomic_cas(table + slot, compare, key, sem="relaxed")
        pending = pending & (previous != EMPTY) & (previous != key)
        slot = tl.where(pending, (slot + 1) & (table_size - 1), slot)
    tl.store(slots + half, tl.where(valid, slot, -1).to(tl.int32), mask=mask)


@triton.jit(do_not_specialize=["face_count", "vertex_count", "batch"])
def mark_sides(
    clip, faces, slots, sides, face_count, vertex_count, batch, table_size,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Mark in sides [words,table_size] int32 on which side of its three edges each face lies in each view.

    sides must be zero at the start. There is one bit per view and side. The side is the sign of (low × high)
    · third corner over (x, y, w), where low and high are the ends of the edge. A face that is seen edge-on
    sets no bit. Grid: (blocks of faces, words of VIEWS_PER_WORD views).
    """
    face = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = face < face_count
    i, j, k = load_face(faces, face, inside)
    plus, minus = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    first = tl.program_id(1) * VIEWS_PER_WORD
    for view in range(0, tl.minimum(VIEWS_PER_WORD, batch - first)):
        view_clip = clip + (first + view).to(tl.int64) * vertex_count * 4
        a, _ = load_corner(view_clip, i, inside)
        b, _ = load_corner(view_clip, j, inside)
        c, _ = load_corner(view_clip, k, inside)
        n = cross(b, c)
        det = n[0] * a[0] + n[1] * a[1] + n[2] * a[2]
        plus = plus | ((det > 0).to(tl.int32) << (2 * view))
        minus = minus | ((det < 0).to(tl.int32) << (2 * view))
    sides += tl.program_id(1).to(tl.int64) * table_size
    slot_pointer = slots + 3 * face
    mark_edge(sides, slot_pointer, j < k, plus, minus, inside)
    mark_edge(sides, slot_pointer + 1, k < i, plus, minus, inside)
    mark_edge(sides, slot_pointer + 2, i < j, plus, minus, inside)


@triton.jit
def mark_edge(sides, slot_pointer, ascends, plus, minus, inside):
    """Mark one edge of each face. ascends: whether the face traverses the edge from its smaller to its larger
    vertex.
    """
    slot = tl.load(slot_pointer, mask=inside, other=-1)
    word = tl.where(ascends, plus | (minus << 1), minus | (plus << 1))
    tl.atomic_or(sides + slot, word, mask=(slot >= 0) & (word != 0), sem="relaxed")


@triton.jit
def list_silhouettes(sides, items, item_count, table_size, BLOCK: tl.constexpr):
    """Append view << 32 | slot << 1 | side to items [N] for each silhouette.

    side: 1 if the faces lie on the plus side, else 0. items: int64. item_count [1]: int32, zero at the start.
    Grid: (blocks of slots, words of views).
    """
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = tl.program_id(1) * VIEWS_PER_WORD
    marks = tl.load(
        sides + tl.program_id(1).to(tl.int64) * table_size + slot, mask=slot < table_size, other=0
    )
    plus, minus = marks & 0x55555555, (marks >> 1) & 0x55555555
    outline = plus ^ minus
    if tl.max((outline != 0).to(tl.int32)) > 0:
        for view in range(0, VIEWS_PER_WORD):
            is_outline = (outline >> (2 * view)) & 1
            found = tl.sum(is_outline)
            if found > 0:
                index = tl.atomic_add(item_count, found, sem="relaxed") + tl.cumsum(is_outline, 0) - 1
                side = (plus >> (2 * view)) & 1
                item = ((slot * 2 + side).to(tl.int64)) | ((first + view).to(tl.int64) << 32)
                tl.store(items + index, item, mask=is_outline > 0)


@triton.jit
def cut_at_near_plane(p, z, q, q_z):
    """Return p and z. If z < −w, return the intersection of the segment pq with the near plane z = −w
    instead.
    """
    above_p, above_q = z + p[2], q_z + q[2]
    fraction = above_p / tl.where(above_p == above_q, 1.0, above_p - above_q)
    cut = above_p < 0
    x, y = p[0] + fraction * (q[0] - p[0]), p[1] + fraction * (q[1] - p[1])
    w, z_cut = p[2] + fraction * (q[2] - p[2]), z + fraction * (q_z - z)
    return (tl.where(cut, x, p[0]), tl.where(cut, y, p[1]), tl.where(cut, w, p[2])), tl.where(cut, z_cut, z)


@triton.jit
def to_screen(p, z, in_front, height, width):
    """Return x and y in pixels, and z/w."""
    w = tl.where(in_front, p[2], 1.0)
    return (p[0] / w + 1) * width / 2, (p[1] / w + 1) * height / 2, z / w


@triton.jit
def load_edge(clip, table, slot, mask):
    """Return both ends of an edge as (x, y, w) and z, and their vertex indices."""
    key = tl.load(table + slot, mask=mask, other=0)
    low, high = key >> 32, key & 0xFFFFFFFF
    a, az = load_corner(clip, low, mask)
    b, bz = load_corner(clip, high, mask)
    return a, az, b, bz, low, high


@triton.jit
def load_depth(rast, pixel, mask):
    """Return z/w of the surface at a pixel, infinity in the background."""
    covered = tl.load(rast + 4 * pixel + 3, mask=mask, other=0.0) > 0
    z = tl.load(rast + 4 * pixel + 2, mask=mask, other=0.0).to(tl.float64)
    return tl.where(covered, z, float("inf"))


@triton.jit(do_not_specialize=["vertex_count"])
def find_crossings(
    clip, rast, table, items, item_count, winners, vertex_count, height, width,
    ITEMS: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Compute the crossings of each listed edge with pixel rows or columns. Grid: any number of programs."""
    count = tl.load(item_count)
    for begin in range(tl.program_id(0) * ITEMS, count, tl.num_programs(0) * ITEMS):
        index = begin + tl.arange(0, ITEMS)
        valid = index < count
        item = tl.load(items + index, mask=valid, other=0)
        view, slot, plus = item >> 32, (item & 0xFFFFFFFF) >> 1, (item & 1) > 0
        a, az, b, bz, _, _ = load_edge(clip + view * vertex_count * 4, table, slot, valid)
        normal = cross(a, b)
        valid = valid & ((az + a[2] >= 0) | (bz + b[2] >= 0))
        a_cut, az_cut = cut_at_near_plane(a, az, b, bz)
        b_cut, bz_cut = cut_at_near_plane(b, bz, a, az)
        valid = valid & (a_cut[2] > 0) & (b_cut[2] > 0)
        ax, ay, a_depth = to_screen(a_cut, az_cut, valid, height, width)
        bx, by, b_depth = to_screen(b_cut, bz_cut, valid, height, width)
        valid = valid & (tl.abs(ax + ay + a_depth + bx + by + b_depth) < float("inf"))

        flat = tl.abs(bx - ax) > tl.abs(by - ay)
        start, end = tl.where(flat, ax, ay), tl.where(flat, bx, by)
        along, across = tl.where(flat, width, height), tl.where(flat, height, width)
        n_along, n_across = tl.where(flat, normal[0], normal[1]), tl.where(flat, normal[1], normal[0])
        inner_is_second = (n_across > 0) == plus
        # The interval is half-open. A line of pixel centres through the common vertex of two edges therefore
        # crosses only one of them.
        first = tl.ceil(tl.minimum(start, end) - 0.5)
        stop = tl.ceil(tl.maximum(start, end) - 0.5)
        first = tl.minimum(tl.maximum(tl.where(valid, first, 0.0), 0.0), along * 1.0).to(tl.int32)
        stop = tl.minimum(tl.maximum(tl.where(valid, stop, 0.0), 0.0), along * 1.0).to(tl.int32)
        first, stop = first[:, None], stop[:, None]
        start, end, a_depth, b_depth = start[:, None], end[:, None], a_depth[:, None], b_depth[:, None]
        flat, inner_is_second, along, across = (
            flat[:, None],
            inner_is_second[:, None],
            along[:, None],
            across[:, None],
        )
        image = (view * height * width)[:, None]
        for line_offset in range(0, tl.max(stop - first), LINES):
            line = first + line_offset + tl.arange(0, LINES)[None, :]
            mask = line < stop
            divisor = tl.where(mask, n_across[:, None], 1.0)
            position = crossing_position(n_along[:, None], divisor, normal[2][:, None], line, along, across)
            cell = tl.floor(position - 0.5)
            mask = mask & (cell >= 0) & (cell < across - 1)
            low = tl.where(mask, cell, 0.0).to(tl.int32)
            pixel = tl.where(flat, low * width + line, line * width + low)
            neighbour = pixel + tl.where(flat, width, 1)
            z_inner = load_depth(rast, image + tl.where(inner_is_second, neighbour, pixel), mask)
            z_outer = load_depth(rast, image + tl.where(inner_is_second, pixel, neighbour), mask)
            length = tl.where(mask, end - start, 1.0)
            depth = a_depth + (line + 0.5 - start) / length * (b_depth - a_depth)
            mask = mask & (z_inner < z_outer) & (depth < z_outer) & (tl.abs(depth) <= 1)
            fraction = tl.where(mask, position - 0.5 - cell, 0.0)
            distance = tl.where(inner_is_second, 1 - fraction, fraction)
            key = tl.floor(distance * DISTANCE_STEPS).to(tl.int64) << (SLOT_BITS + 1)
            key = key | (slot[:, None] << 1) | inner_is_second.to(tl.int64)
            pair = 2 * image + tl.where(flat, height * width, 0) + pixel
            tl.atomic_max(winners + pair, key, mask=mask, sem="relaxed")


@triton.jit
def crossing_position(n_along, n_across, n_w, line, along, across):
    """Return the coordinate in pixels at which an edge crosses a line of pixel centres."""
    return (1 - (n_along * centre(line, along) + n_w) / n_across) * across / 2
