"""A 3 × 3 convolution of an image with few channels, in Triton.

The speed of such a convolution is limited by the writing of its output to memory. cuDNN's kernels pad the
input channels and do not add the bias, and they take several times as long.
"""

import torch
import triton
from triton import language as tl

PIXELS, CHANNELS, WARPS = 128, 128, 8
TAPS = 9


@triton.jit(do_not_specialize=["N", "H", "W"])
def _image_convolution(
    x, weight, bias, y, N, H, W, D, C: tl.constexpr,
    DEPTH: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """x: [B, H, W, C], with N = B · H · W pixels. weight: [DEPTH, D], whose row 3C · i + C · j + c belongs to
    channel c of the pixel in row i and column j of the 3 × 3 neighbourhood. y: [B, H, W, D].
    """
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    depth = tl.arange(0, DEPTH)
    column, row = pixel % W, pixel // W % H
    row_step, column_step = depth // (3 * C) - 1, depth // C % 3 - 1
    near_row, near_column = row[:, None] + row_step[None, :], column[:, None] + column_step[None, :]
    inside = (near_row >= 0) & (near_row < H) & (near_column >= 0) & (near_column < W)
    inside = inside & (pixel < N)[:, None] & (depth < 9 * C)[None, :]
    near = pixel.to(tl.int64)[:, None] + row_step[None, :] * W + column_step[None, :]
    values = tl.load(x + near * C + (depth % C)[None, :], mask=inside, other=0.0)
    channel_mask = channel < D
    weights = tl.load(weight + depth[:, None] * D + channel[None, :], mask=channel_mask[None, :], other=0.0)
    total = tl.dot(values, weights, input_precision="ieee")
    total += tl.load(bias + channel, mask=channel_mask, other=0.0).to(tl.float32)[None, :]
    offsets = pixel.to(tl.int64)[:, None] * D + channel[None, :]
    mask = (pixel < N)[:, None] & channel_mask[None, :]
    tl.store(y + offsets, total.to(y.dtype.element_ty), mask=mask)


def image_convolution(x, weight, bias):
    """See `sd.kernels.reference.image_convolution`. The output is channels-last."""
    x = x.detach().contiguous(memory_format=torch.channels_last)
    samples, channels, height, width = x.shape
    out_channels = len(weight)
    depth = max(triton.next_power_of_2(TAPS * channels), 16)
    # The weights in the order [i, j, c, d]. The number of rows (i, j, c) is padded to a power of two.
    rows = weight.detach().permute(2, 3, 1, 0).reshape(TAPS * channels, out_channels)
    rows = torch.nn.functional.pad(rows, (0, 0, 0, depth - len(rows)))
    shape = (samples, out_channels, height, width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    count, columns = samples * height * width, min(triton.next_power_of_2(out_channels), CHANNELS)
    columns = max(columns, 16)
    with torch.cuda.device_of(x):
        _image_convolution[triton.cdiv(count, PIXELS), triton.cdiv(out_channels, columns)](
            x, rows, bias.detach(), y, count, height, width, out_channels, channels,
            DEPTH=depth, PIXELS=PIXELS, CHANNELS=columns, num_warps=WARPS,
        )  # fmt: skip
    return y
