"""Triton kernels that interpolate vertex attributes at the pixels, forward and backward."""

import triton
from triton import language as tl

from render.raster.triton.triangles import load_face


@triton.jit
def load_pixels(
    rast, faces, pixel_count, view_pixels, view_stride, CHANNELS, BLOCK: tl.constexpr, PADDED: tl.constexpr
):
    """Return pixels, channels, whether each pixel is in the image, whether each pixel is covered, u, v, and
    the offsets of the three attribute rows of each pixel.

    PADDED is the next power of two of CHANNELS. view_stride is 0 if all views share the attributes.
    """
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixel_count
    u = tl.load(rast + 4 * pixel, mask=inside, other=0.0)
    v = tl.load(rast + 4 * pixel + 1, mask=inside, other=0.0)
    face = tl.load(rast + 4 * pixel + 3, mask=inside, other=0.0).to(tl.int32) - 1
    covered = face >= 0
    i, j, k = load_face(faces, face, covered)
    channel = tl.arange(0, PADDED)[None, :]
    base = (pixel // view_pixels * view_stride)[:, None] + channel
    rows = (
        base + i.to(tl.int64)[:, None] * CHANNELS,
        base + j.to(tl.int64)[:, None] * CHANNELS,
        base + k.to(tl.int64)[:, None] * CHANNELS,
    )
    return pixel, channel, inside, covered, u, v, rows


@triton.jit(do_not_specialize=["view_stride"])
def interpolate(
    attributes, rast, faces, out, pixel_count, view_pixels, view_stride,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write u·a0 + v·a1 + (1 − u − v)·a2 to out [B,H,W,C], and 0 in the background."""
    pixel, channel, inside, covered, u, v, rows = load_pixels(
        rast, faces, pixel_count, view_pixels, view_stride, CHANNELS, BLOCK, PADDED
    )
    mask = covered[:, None] & (channel < CHANNELS)
    value = u[:, None] * tl.load(attributes + rows[0], mask=mask, other=0.0)
    value += v[:, None] * tl.load(attributes + rows[1], mask=mask, other=0.0)
    value += (1 - u - v)[:, None] * tl.load(attributes + rows[2], mask=mask, other=0.0)
    tl.store(out + pixel[:, None] * CHANNELS + channel, value, mask=inside[:, None] & (channel < CHANNELS))


@triton.jit(do_not_specialize=["view_stride"])
def interpolate_backward(
    attributes, rast, faces, grad_out, grad_attributes, grad_rast, pixel_count, view_pixels, view_stride,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    TO_ATTRIBUTES: tl.constexpr, TO_RAST: tl.constexpr,
):  # fmt: skip
    """Compute grad_attributes if TO_ATTRIBUTES is set and grad_rast [B,H,W,4] if TO_RAST is set.
    grad_attributes must be zero at the start.
    """
    pixel, channel, inside, covered, u, v, rows = load_pixels(
        rast, faces, pixel_count, view_pixels, view_stride, CHANNELS, BLOCK, PADDED
    )
    mask = covered[:, None] & (channel < CHANNELS)
    grad = tl.load(grad_out + pixel[:, None] * CHANNELS + channel, mask=mask, other=0.0)
    if TO_ATTRIBUTES:
        nonzero = mask & (grad != 0)
        tl.atomic_add(grad_attributes + rows[0], u[:, None] * grad, mask=nonzero, sem="relaxed")
        tl.atomic_add(grad_attributes + rows[1], v[:, None] * grad, mask=nonzero, sem="relaxed")
        tl.atomic_add(grad_attributes + rows[2], (1 - u - v)[:, None] * grad, mask=nonzero, sem="relaxed")
    if TO_RAST:
        last = tl.load(attributes + rows[2], mask=mask, other=0.0)
        grad_u = tl.sum(grad * (tl.load(attributes + rows[0], mask=mask, other=0.0) - last), 1)
        grad_v = tl.sum(grad * (tl.load(attributes + rows[1], mask=mask, other=0.0) - last), 1)
        zero = tl.zeros_like(grad_u)
        pointer = grad_rast + 4 * pixel
        tl.store(pointer, grad_u, mask=inside)
        tl.store(pointer + 1, grad_v, mask=inside)
        tl.store(pointer + 2, zero, mask=inside)
        tl.store(pointer + 3, zero, mask=inside)
