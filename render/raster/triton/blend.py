"""Triton kernels that blend the pixel pairs found by silhouette.py in this folder, forward and backward.

Each row of a block holds one pixel and its four neighbours: right, left, down, up. The formulas are those of
silhouette.blend_pairs. a and b are the total weights along the row and the column of the pixel,
f = 1 − ab / (a + b), and Δₖ is the colour of neighbour k minus that of the pixel. The pixel changes by
f Σ wₖ Δₖ. Only listed pixels are processed.
"""

import triton
from triton import language as tl

from render.raster.triton.silhouette import SLOT_MASK, crossing_place, load_edge
from render.raster.triton.triangles import centre, cross


@triton.jit
def load_keys(winners, pixel, inside, height, width):
    """For flat pixels [N,1]: view, row, column, and the winner of the pair with each neighbour [N,4] or −1.

    Also returns, each [1,4]: whether the neighbour lies along the column, whether the pixel is the first of
    the pair, and the offset of the neighbour in flat pixels.
    """
    view, place = pixel // (height * width), pixel % (height * width)
    row, column = place // width, place % width
    side = tl.arange(0, 4)[None, :]
    vertical, first = side >= 2, side % 2 == 0
    step = tl.where(vertical, width, 1)
    own, across = tl.where(vertical, row, column), tl.where(vertical, height, width)
    paired = inside & tl.where(first, own < across - 1, own > 0)
    near = place - tl.where(first, 0, step)
    image = (2 * view + vertical.to(tl.int64)) * height * width
    key = tl.load(winners + image + near, mask=paired, other=-1)
    return (view, row, column), key, (vertical, first, tl.where(first, step, -step))


@triton.jit
def list_pixels(winners, pixels, count, pixel_count, height, width, BLOCK: tl.constexpr):
    """Append the pixels that belong to a pair to pixels [N] int64. count [1] int32 starts at zero."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _, key, _ = load_keys(winners, pixel[:, None], (pixel < pixel_count)[:, None], height, width)
    listed = (tl.max(key, 1) >= 0).to(tl.int32)
    found = tl.sum(listed)
    if found > 0:
        place = tl.atomic_add(count, found, sem="relaxed") + tl.cumsum(listed, 0) - 1
        tl.store(pixels + place, pixel, mask=listed > 0)


@triton.jit
def cut(clip, table, key, row, column, height, width, vertical, first):
    """Mask of the pairs [N,4] that change the pixel, their weights, and values for the backward pass.

    These values are: d weight / d place of the crossing; the line of the edge as slope, other, w; the line of
    pixel centres; the ends (x, y, w) and their vertices.
    """
    met, beyond = key >= 0, (key & 1) > 0
    a, _, b, _, low, high = load_edge(clip, table, (key >> 1) & SLOT_MASK, met)
    normal = cross(a, b)
    slope = tl.where(met, tl.where(vertical, normal[1], normal[0]), 1.0)
    other = tl.where(vertical, normal[0], normal[1])
    line, along = tl.where(vertical, column, row), tl.where(vertical, width, height)
    own, across = tl.where(vertical, row, column), tl.where(vertical, height, width)
    place = crossing_place(other, slope, normal[2], line, along, across)
    # If the object lies beyond the crossing, the second pixel of the pair is the inner one.
    inner = own - (first == 0).to(tl.int32) + beyond.to(tl.int32)
    ahead = tl.where(beyond, -1.0, 1.0)
    distance = (place - inner - 0.5) * ahead
    lost = distance < 0.5
    met = met & (lost == (inner == own))
    weight = tl.where(met, tl.abs(0.5 - distance), 0.0).to(tl.float64)
    return met, weight, tl.where(lost, -ahead, ahead), (slope, other, normal[2]), (a, b), (low, high)


@triton.jit
def shares(weight, vertical):
    """Total weights along the row and the column, their sum (1 if it is zero), and f. Each is [N,1]."""
    a = tl.sum(tl.where(vertical, 0.0, weight), 1)[:, None]
    b = tl.sum(tl.where(vertical, weight, 0.0), 1)[:, None]
    total = tl.where(a + b > 0, a + b, 1.0)
    return a, b, total, 1 - a * b / total


@triton.jit
def load_colours(colour, pixel, step, met, CHANNELS: tl.constexpr, PADDED: tl.constexpr):
    """Offsets of the pixel colours [N,1,C] and neighbour colours [N,4,C], masks, pixel colours and Δ."""
    channel = tl.arange(0, PADDED)[None, None, :]
    at, there = pixel[:, :, None] * CHANNELS + channel, (pixel + step)[:, :, None] * CHANNELS + channel
    wanted = met[:, :, None] & (channel < CHANNELS)
    touched = (tl.max(met.to(tl.int32), 1) > 0)[:, None, None] & (channel < CHANNELS)
    own = tl.load(colour + at, mask=touched, other=0.0)
    difference = tl.where(wanted, tl.load(colour + there, mask=wanted, other=0.0) - own, 0.0)
    return (at, there), (touched, wanted), own, difference


@triton.jit(do_not_specialize=["vertex_count"])
def blend(
    colour, clip, table, winners, pixels, count, out, vertex_count, height, width,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the listed pixels that an edge crosses to out [B,H,W,C], which starts as a copy of colour."""
    total = tl.load(count)
    for begin in range(tl.program_id(0) * BLOCK, total, tl.num_programs(0) * BLOCK):
        index = begin + tl.arange(0, BLOCK)[:, None]
        pixel = tl.load(pixels + index, mask=index < total, other=0)
        spot, key, sides = load_keys(winners, pixel, index < total, height, width)
        view, row, column = spot
        vertical, first, step = sides
        met, weight, _, _, _, _ = cut(
            clip + view * vertex_count * 4, table, key, row, column, height, width, vertical, first
        )
        _, _, _, factor = shares(weight, vertical)
        at, allowed, own, difference = load_colours(colour, pixel, step, met, CHANNELS, PADDED)
        change = (factor * weight).to(own.dtype)[:, :, None] * difference
        tl.store(out + at[0], own + tl.sum(change, 1)[:, None, :], mask=allowed[0])


@triton.jit(do_not_specialize=["vertex_count"])
def blend_backward(
    colour, clip, table, winners, pixels, count, grad_out, grad_colour, grad_clip,
    vertex_count, height, width,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, TO_CLIP: tl.constexpr,
):  # fmt: skip
    """Add to grad_colour, which starts as a copy of grad_out, and to grad_clip [B,V,4] float64, if needed."""
    total = tl.load(count)
    for begin in range(tl.program_id(0) * BLOCK, total, tl.num_programs(0) * BLOCK):
        index = begin + tl.arange(0, BLOCK)[:, None]
        pixel = tl.load(pixels + index, mask=index < total, other=0)
        spot, key, sides = load_keys(winners, pixel, index < total, height, width)
        view, row, column = spot
        vertical, first, step = sides
        met, weight, by_place, normal, ends, vertices = cut(
            clip + view * vertex_count * 4, table, key, row, column, height, width, vertical, first
        )
        a, b, both, factor = shares(weight, vertical)
        at, allowed, _, difference = load_colours(colour, pixel, step, met, CHANNELS, PADDED)
        grad = tl.load(grad_out + at[0], mask=allowed[0], other=0.0)
        moved = (factor * weight).to(grad.dtype)[:, :, None] * grad
        tl.atomic_add(grad_colour + at[1], moved, mask=allowed[1], sem="relaxed")
        tl.atomic_add(grad_colour + at[0], -tl.sum(moved, 1)[:, None, :], mask=allowed[0], sem="relaxed")
        if TO_CLIP:
            # d/dwₖ (f Σ w Δ) = f Δₖ + (∂f/∂a or ∂f/∂b) Σ w Δ, with ∂f/∂a = −b² / (a + b)².
            gain = tl.sum(difference * grad, 2).to(tl.float64)
            rest = tl.where(vertical, a, b) / both
            by_weight = factor * gain - rest * rest * tl.sum(weight * gain, 1)[:, None]
            push_edge(
                grad_clip + view * vertex_count * 4, by_weight * by_place, normal, ends, vertices,
                row, column, height, width, vertical, met,
            )  # fmt: skip


@triton.jit
def push_edge(grad_clip, grad_place, normal, ends, vertices, row, column, height, width, vertical, met):
    """Propagate the gradient of the crossing places to the ends of the edges.

    place = (1 − (other · centre + w) / slope) · size / 2, and the line is a × b, so ∂L/∂a = b × ∂L/∂line.
    """
    slope, other, w = normal
    middle = tl.where(vertical, centre(column, width), centre(row, height))
    grad_w = -grad_place * tl.where(vertical, height, width) / 2 / slope
    grad_other, grad_slope = grad_w * middle, -grad_w * (other * middle + w) / slope
    line = tl.where(vertical, grad_other, grad_slope), tl.where(vertical, grad_slope, grad_other), grad_w
    a, b = ends
    add_end(grad_clip, vertices[0], cross(b, line), met)
    add_end(grad_clip, vertices[1], cross(line, a), met)


@triton.jit
def add_end(grad_clip, vertex, push, met):
    target = grad_clip + 4 * vertex
    tl.atomic_add(target, push[0], mask=met, sem="relaxed")
    tl.atomic_add(target + 1, push[1], mask=met, sem="relaxed")
    tl.atomic_add(target + 3, push[2], mask=met, sem="relaxed")
