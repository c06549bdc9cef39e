"""Triton kernels that find the pixel pairs that silhouettes cross; see render/raster/silhouette.py.

The half-edges of all faces are grouped by the smaller of their two vertices. This grouping needs neither a
sort nor a hash table, and allows any number of faces per edge. A half-edge has the number 3 · face + corner,
where the corner is opposite the edge. The half-edge with the smallest number represents the edge.

First, each face is marked with the side of the face that each view sees. Then the representative of each edge
combines the marks of its faces, which show on which side of the edge each face is projected. If all faces are
on one side, the edge is a silhouette. The silhouettes are listed, and their crossings with pixel rows or
columns are computed. `winners` [B,2,H,W] int64 stores, at the axis and first pixel of each pair, the crossing
that is farthest from the inner pixel. The value is −1 if there is no crossing. Otherwise the value consists
of 36 bits for the distance from the inner pixel, 26 bits for the half-edge, and one bit that is set if the
inner pixel is the second.
"""

import triton
from triton import language as tl

from render.raster.triton.triangles import centre, cross, load_corner, load_face, load_row

# Number of views whose marks share an int32, with two bits per view.
VIEWS_PER_WORD = tl.constexpr(16)
PLUS_BITS = tl.constexpr(0x55555555)
HALF_EDGE_BITS = tl.constexpr(26)
HALF_EDGE_MASK = tl.constexpr(2**26 - 1)
DISTANCE_STEPS = tl.constexpr(2.0**35)


@triton.jit
def load_half_edge(faces, half, mask):
    """Return the smaller vertex, the larger vertex, and whether the face traverses the edge in this order."""
    half = half.to(tl.int64)
    first = half // 3 * 3
    corner = (half % 3).to(tl.int32)
    start = tl.load(faces + first + (corner + 1) % 3, mask=mask, other=0).to(tl.int64)
    end = tl.load(faces + first + (corner + 2) % 3, mask=mask, other=0).to(tl.int64)
    return tl.minimum(start, end), tl.maximum(start, end), start < end


@triton.jit(do_not_specialize=["half_edges"])
def count_half_edges(faces, counts, ranks, half_edges, BLOCK: tl.constexpr):
    """Count the half-edges of each smaller vertex v in counts[v + 1]. counts [V+1] int32 must start at zero.

    ranks [3F] int32 receives, for each half-edge, the number of half-edges of the same vertex that were
    counted before this half-edge. This number varies between runs. A half-edge whose ends are equal is not
    counted.
    """
    half = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = half < half_edges
    low, high, _ = load_half_edge(faces, half, mask)
    mask = mask & (low != high)
    rank = tl.atomic_add(counts + low + 1, 1, mask=mask, sem="relaxed")
    tl.store(ranks + half, rank, mask=mask)


@triton.jit(do_not_specialize=["half_edges"])
def group_half_edges(faces, starts, ranks, groups, half_edges, BLOCK: tl.constexpr):
    """Write each half-edge to groups [3F] int64, as larger vertex << 32 | half-edge << 1 | ascends.

    ascends: whether the face traverses the edge from the smaller to the larger vertex. The group of vertex v
    is starts[v] to starts[v + 1]. starts: the cumulative sum of counts, [V+1] int32.
    """
    half = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = half < half_edges
    low, high, ascends = load_half_edge(faces, half, mask)
    mask = mask & (low != high)
    place = tl.load(starts + low, mask=mask, other=0) + tl.load(ranks + half, mask=mask, other=0)
    item = (high << 32) | (half.to(tl.int64) << 1) | ascends.to(tl.int64)
    tl.store(groups + place, item, mask=mask)


@triton.jit(do_not_specialize=["face_count", "vertex_count", "batch"])
def mark_faces(clip, faces, marks, face_count, vertex_count, batch, BLOCK: tl.constexpr):
    """Write marks [words,F] int32: two bits per view, 1 if det > 0, 2 if det < 0, and 0 if the face is seen
    edge-on.

    det = v₀ · (v₁ × v₂) over (x, y, w). Grid: (blocks of faces, words of VIEWS_PER_WORD views).
    """
    face = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = face < face_count
    i, j, k = load_face(faces, face, inside)
    word = tl.zeros([BLOCK], tl.int32)
    first = tl.program_id(1) * VIEWS_PER_WORD
    for view in range(0, tl.minimum(VIEWS_PER_WORD, batch - first)):
        view_clip = clip + (first + view).to(tl.int64) * vertex_count * 4
        a, _ = load_row(view_clip, i, inside)
        b, _ = load_row(view_clip, j, inside)
        c, _ = load_row(view_clip, k, inside)
        n = cross(b, c)
        det = n[0] * a[0] + n[1] * a[1] + n[2] * a[2]
        side = (det > 0).to(tl.int32) | ((det < 0).to(tl.int32) << 1)
        word = word | (side << (2 * view))
    tl.store(marks + tl.program_id(1).to(tl.int64) * face_count + face, word, mask=inside)


@triton.jit
def combine_marks(groups, marks, half, low, high, begin, length, BLOCK: tl.constexpr):
    """Return the smallest half-edge of each edge, and the marks of all faces of the edge.

    The mark of each face is first converted to the sign of (low × high) · third corner.
    """
    smallest, combined = half, tl.zeros([BLOCK], tl.int32)
    for step in range(0, tl.max(length)):
        item = tl.load(groups + begin + step, mask=step < length, other=-1)
        same = (item >> 32) == high
        other = ((item & 0xFFFFFFFF) >> 1).to(tl.int32)
        word = tl.load(marks + other // 3, mask=same, other=0)
        swapped = ((word & PLUS_BITS) << 1) | ((word >> 1) & PLUS_BITS)
        combined = combined | tl.where((item & 1) > 0, word, swapped)
        smallest = tl.where(same, tl.minimum(smallest, other), smallest)
    return smallest, combined


@triton.jit(do_not_specialize=["face_count", "half_edges", "batch"])
def list_silhouettes(
    faces, starts, groups, marks, items, item_count, face_count, half_edges, batch, BLOCK: tl.constexpr
):
    """Append view << 32 | half-edge << 1 | plus to items for each silhouette.

    plus: whether the faces of the edge lie on the side where (low × high) · p > 0 for points p = (x, y, w).
    items: [B·3F] int64. item_count [1]: int32, starts at zero. Grid: (blocks of half-edges, words of views).
    """
    half = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = half < half_edges
    low, high, _ = load_half_edge(faces, half, mask)
    mask = mask & (low != high)
    begin = tl.load(starts + low, mask=mask, other=0)
    length = tl.load(starts + low + 1, mask=mask, other=0) - begin
    marks += tl.program_id(1).to(tl.int64) * face_count
    smallest, combined = combine_marks(groups, marks, half, low, high, begin, length, BLOCK)
    plus, minus = combined & PLUS_BITS, (combined >> 1) & PLUS_BITS
    outline = tl.where(mask & (smallest == half), plus ^ minus, 0)
    first = tl.program_id(1) * VIEWS_PER_WORD
    views = tl.minimum(VIEWS_PER_WORD, batch - first)
    found = tl.zeros([BLOCK], tl.int32)
    for view in range(0, views):
        found += (outline >> (2 * view)) & 1
    total = tl.sum(found)
    if total > 0:
        index = tl.atomic_add(item_count, total, sem="relaxed") + tl.cumsum(found, 0) - found
        for view in range(0, views):
            is_outline = (outline >> (2 * view)) & 1
            side = (plus >> (2 * view)) & 1
            item = (half.to(tl.int64) * 2 + side) | ((first + view).to(tl.int64) << 32)
            tl.store(items + index, item, mask=is_outline > 0)
            index += is_outline


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
    return (p[0] / w + 1) * (width * 0.5), (p[1] / w + 1) * (height * 0.5), z / w


@triton.jit
def load_edge(clip, faces, half, mask):
    """Return both ends of an edge as (x, y, w) and z, and their vertex indices."""
    low, high, _ = load_half_edge(faces, half, mask)
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
    clip, rast, faces, items, item_count, winners, vertex_count, height, width,
    ITEMS: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Write the visible crossings of the listed edges with pixel rows or columns to winners. Grid: any number
    of programs.
    """
    count = tl.load(item_count)
    for begin in range(tl.program_id(0) * ITEMS, count, tl.num_programs(0) * ITEMS):
        index = begin + tl.arange(0, ITEMS)
        valid = index < count
        item = tl.load(items + index, mask=valid, other=0)
        view, half, plus = item >> 32, (item & 0xFFFFFFFF) >> 1, (item & 1) > 0
        smaller, larger, _ = load_half_edge(faces, half, valid)
        a, az = load_row(clip, view * vertex_count + smaller, valid)
        b, bz = load_row(clip, view * vertex_count + larger, valid)
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
        # The interval of lines is half-open, so that a line of pixel centres through the common vertex of two
        # consecutive edges crosses only one of the edges.
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
            key = tl.floor(distance * DISTANCE_STEPS).to(tl.int64) << (HALF_EDGE_BITS + 1)
            key = key | (half[:, None] << 1) | inner_is_second.to(tl.int64)
            pair = 2 * image + tl.where(flat, height * width, 0) + pixel
            tl.atomic_max(winners + pair, key, mask=mask, sem="relaxed")


@triton.jit
def crossing_position(n_along, n_across, n_w, line, along, across):
    """Return the coordinate in pixels at which an edge crosses a line of pixel centres."""
    return (1 - (n_along * centre(line, along) + n_w) / n_across) * (across * 0.5)
