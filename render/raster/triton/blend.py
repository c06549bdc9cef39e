"""Triton kernels that blend the pixel pairs found by silhouette.py in this folder, forward and backward.

Each row of a block contains one pixel and its four neighbours in the order right, left, down, up. The
formulas are those of render/raster/silhouette.py, blend_pairs. wₖ is the weight of the pair with neighbour k.
a and b are the sums of the weights along the row and along the column of the pixel, and f = 1 − ab / (a + b).
Δₖ is the colour of neighbour k minus the colour of the pixel. The colour of the pixel changes by f Σ wₖ Δₖ.
Only the pixels that `list_pixels` has listed are processed.
"""

import triton
from triton import language as tl

from render.raster.triton.silhouette import HALF_EDGE_MASK, crossing_position, load_edge
from render.raster.triton.triangles import centre, cross


@triton.jit
def load_winners(winners, pixel, in_image, height, width):
    """Return view, row and column of flat pixels [N,1], and the winner of each pair with a neighbour [N,4].

    The winner is −1 if no silhouette crosses the pair. Three more values [1,4] are returned for the
    neighbours: whether the neighbour lies along the column, whether the pixel is the first of the pair, and
    the offset of the neighbour in flat pixels.
    """
    view, image_pixel = pixel // (height * width), pixel % (height * width)
    row, column = image_pixel // width, image_pixel % width
    side = tl.arange(0, 4)[None, :]
    vertical, first = side >= 2, side % 2 == 0
    step = tl.where(vertical, width, 1)
    coordinate, across = tl.where(vertical, row, column), tl.where(vertical, height, width)
    pair_mask = in_image & tl.where(first, coordinate < across - 1, coordinate > 0)
    first_pixel = image_pixel - tl.where(first, 0, step)
    image = (2 * view + vertical.to(tl.int64)) * height * width
    key = tl.load(winners + image + first_pixel, mask=pair_mask, other=-1)
    return (view, row, column), key, (vertical, first, tl.where(first, step, -step))


@triton.jit
def list_pixels(winners, pixels, count, pixel_count, height, width, BLOCK: tl.constexpr):
    """Append to pixels [N] int64 all pixels that belong to a pair. count [1] int32, their number, must start
    at zero.
    """
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _, key, _ = load_winners(winners, pixel[:, None], (pixel < pixel_count)[:, None], height, width)
    is_listed = (tl.max(key, 1) >= 0).to(tl.int32)
    count_found = tl.sum(is_listed)
    if count_found > 0:
        index = tl.atomic_add(count, count_found, sem="relaxed") + tl.cumsum(is_listed, 0) - 1
        tl.store(pixels + index, pixel, mask=is_listed > 0)


@triton.jit
def load_crossings(clip, faces, key, row, column, height, width, vertical, first):
    """Return the mask of the pairs [N,4] that change the pixel, their weights, and values for the backward
    pass.

    The values are ∂weight/∂position of the crossing, the line of the edge as (n_across, n_along, w), and the
    ends of the edge as (x, y, w) and as vertex indices.
    """
    mask, inner_is_second = key >= 0, (key & 1) > 0
    a, _, b, _, low, high = load_edge(clip, faces, (key >> 1) & HALF_EDGE_MASK, mask)
    normal = cross(a, b)
    n_across = tl.where(mask, tl.where(vertical, normal[1], normal[0]), 1.0)
    n_along = tl.where(vertical, normal[0], normal[1])
    line, along = tl.where(vertical, column, row), tl.where(vertical, width, height)
    coordinate, across = tl.where(vertical, row, column), tl.where(vertical, height, width)
    position = crossing_position(n_along, n_across, normal[2], line, along, across)
    inner = coordinate - (first == 0).to(tl.int32) + inner_is_second.to(tl.int32)
    direction = tl.where(inner_is_second, -1.0, 1.0)
    distance = (position - inner - 0.5) * direction
    inner_changes = distance < 0.5
    mask = mask & (inner_changes == (inner == coordinate))
    weight = tl.where(mask, tl.abs(0.5 - distance), 0.0).to(tl.float64)
    weight_by_position = tl.where(inner_changes, -direction, direction)
    return mask, weight, weight_by_position, (n_across, n_along, normal[2]), (a, b), (low, high)


@triton.jit
def total_weights(weight, vertical):
    """Return a, b, a + b (1 if it is zero) and f. Each is [N,1]."""
    a = tl.sum(tl.where(vertical, 0.0, weight), 1)[:, None]
    b = tl.sum(tl.where(vertical, weight, 0.0), 1)[:, None]
    total = tl.where(a + b > 0, a + b, 1.0)
    return a, b, total, 1 - a * b / total


@triton.jit
def load_colours(colour, pixel, step, mask, CHANNELS: tl.constexpr, PADDED: tl.constexpr):
    """Return the offsets of the colours of the pixels [N,1,C] and of the neighbours [N,4,C], the masks of
    both, the colours of the pixels, and Δ.
    """
    channel = tl.arange(0, PADDED)[None, None, :]
    own_offset = pixel[:, :, None] * CHANNELS + channel
    neighbour_offset = (pixel + step)[:, :, None] * CHANNELS + channel
    pair_mask = mask[:, :, None] & (channel < CHANNELS)
    pixel_mask = (tl.max(mask.to(tl.int32), 1) > 0)[:, None, None] & (channel < CHANNELS)
    own = tl.load(colour + own_offset, mask=pixel_mask, other=0.0)
    neighbour = tl.load(colour + neighbour_offset, mask=pair_mask, other=0.0)
    difference = tl.where(pair_mask, neighbour - own, 0.0)
    return (own_offset, neighbour_offset), (pixel_mask, pair_mask), own, difference


@triton.jit(do_not_specialize=["vertex_count"])
def blend(
    colour, clip, faces, winners, pixels, count, out, vertex_count, height, width,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write to out [B,H,W,C] the listed pixels whose colour changes. out must be a copy of colour at the
    start.
    """
    pixel_count = tl.load(count)
    for begin in range(tl.program_id(0) * BLOCK, pixel_count, tl.num_programs(0) * BLOCK):
        index = begin + tl.arange(0, BLOCK)[:, None]
        pixel = tl.load(pixels + index, mask=index < pixel_count, other=0)
        indices, key, directions = load_winners(winners, pixel, index < pixel_count, height, width)
        view, row, column = indices
        vertical, first, step = directions
        mask, weight, _, _, _, _ = load_crossings(
            clip + view * vertex_count * 4, faces, key, row, column, height, width, vertical, first
        )
        _, _, _, factor = total_weights(weight, vertical)
        offsets, masks, own, difference = load_colours(colour, pixel, step, mask, CHANNELS, PADDED)
        change = (factor * weight).to(own.dtype)[:, :, None] * difference
        tl.store(out + offsets[0], own + tl.sum(change, 1)[:, None, :], mask=masks[0])


@triton.jit(do_not_specialize=["vertex_count"])
def blend_backward(
    colour, clip, faces, winners, pixels, count, grad_out, grad_colour, grad_clip,
    vertex_count, height, width,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, TO_CLIP: tl.constexpr,
):  # fmt: skip
    """Add the gradients to grad_colour, which must be a copy of grad_out at the start, and to grad_clip
    [B,V,4] (float64) if TO_CLIP is set.
    """
    pixel_count = tl.load(count)
    for begin in range(tl.program_id(0) * BLOCK, pixel_count, tl.num_programs(0) * BLOCK):
        index = begin + tl.arange(0, BLOCK)[:, None]
        pixel = tl.load(pixels + index, mask=index < pixel_count, other=0)
        indices, key, directions = load_winners(winners, pixel, index < pixel_count, height, width)
        view, row, column = indices
        vertical, first, step = directions
        mask, weight, weight_by_position, normal, ends, vertices = load_crossings(
            clip + view * vertex_count * 4, faces, key, row, column, height, width, vertical, first
        )
        a, b, total, factor = total_weights(weight, vertical)
        offsets, masks, _, difference = load_colours(colour, pixel, step, mask, CHANNELS, PADDED)
        grad = tl.load(grad_out + offsets[0], mask=masks[0], other=0.0)
        grad_source = (factor * weight).to(grad.dtype)[:, :, None] * grad
        tl.atomic_add(grad_colour + offsets[1], grad_source, mask=masks[1], sem="relaxed")
        tl.atomic_add(
            grad_colour + offsets[0], -tl.sum(grad_source, 1)[:, None, :], mask=masks[0], sem="relaxed"
        )
        if TO_CLIP:
            # d/dwₖ (f Σ w Δ) = f Δₖ + (∂f/∂a or ∂f/∂b) Σ w Δ, with ∂f/∂a = −b² / (a + b)².
            grad_blend = tl.sum(difference * grad, 2).to(tl.float64)
            other_weight = tl.where(vertical, a, b) / total
            grad_weight = (
                factor * grad_blend - other_weight * other_weight * tl.sum(weight * grad_blend, 1)[:, None]
            )
            edge_backward(
                grad_clip + view * vertex_count * 4, grad_weight * weight_by_position, normal, ends, vertices,
                row, column, height, width, vertical, mask,
            )  # fmt: skip


@triton.jit
def edge_backward(
    grad_clip, grad_position, normal, ends, vertices, row, column, height, width, vertical, mask
):
    """Add the gradient of the ends of the edges to grad_clip, given the gradient of the crossing positions.

    The position is (1 − (n_along · centre + w) / n_across) · size / 2. The line is a × b, so ∂L/∂a = b ×
    ∂L/∂line.
    """
    n_across, n_along, w = normal
    middle = tl.where(vertical, centre(column, width), centre(row, height))
    grad_w = -grad_position * tl.where(vertical, height, width) / 2 / n_across
    grad_other, grad_slope = grad_w * middle, -grad_w * (n_along * middle + w) / n_across
    line = tl.where(vertical, grad_other, grad_slope), tl.where(vertical, grad_slope, grad_other), grad_w
    a, b = ends
    add_vertex_gradient(grad_clip, vertices[0], cross(b, line), mask)
    add_vertex_gradient(grad_clip, vertices[1], cross(line, a), mask)


@triton.jit
def add_vertex_gradient(grad_clip, vertex, cotangent, mask):
    target = grad_clip + 4 * vertex
    tl.atomic_add(target, cotangent[0], mask=mask, sem="relaxed")
    tl.atomic_add(target + 1, cotangent[1], mask=mask, sem="relaxed")
    tl.atomic_add(target + 3, cotangent[2], mask=mask, sem="relaxed")
