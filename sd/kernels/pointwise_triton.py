"""Triton kernels for the pointwise operations between the prior's matrix products.

Each kernel makes one pass over memory.
"""

import torch
import triton
from triton import language as tl

BLOCK = 1024


@triton.jit(do_not_specialize=["M"])
def _layer_norm(
    x, shift, y, weight, bias, M, C, eps, SHIFT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, CHANNELS)[None, :]
    channel_mask = channel < C
    mask = (row < M) & channel_mask
    offsets = row * C + channel
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if SHIFT:
        value += tl.load(shift + channel, mask=channel_mask, other=0.0).to(tl.float32)
    value = tl.where(mask, value - tl.sum(value, 1)[:, None] / C, 0.0)
    value *= 1.0 / tl.sqrt(tl.sum(value * value, 1)[:, None] / C + eps)
    weight_value = tl.load(weight + channel, mask=channel_mask, other=0.0).to(tl.float32)
    bias_value = tl.load(bias + channel, mask=channel_mask, other=0.0).to(tl.float32)
    tl.store(y + offsets, (value * weight_value + bias_value).to(y.dtype.element_ty), mask=mask)


def layer_norm(x, weight, bias, eps, shift=None):
    """See `sd.kernels.reference.layer_norm`. Sums are accumulated in float32."""
    assert not (x.requires_grad and torch.is_grad_enabled())
    x = x.contiguous()
    y, channels = torch.empty_like(x), x.shape[-1]
    columns = triton.next_power_of_2(channels)
    rows = max(2 * BLOCK // columns, 1)
    count = x.numel() // channels
    with torch.cuda.device_of(x):
        _layer_norm[(triton.cdiv(count, rows),)](
            x, x if shift is None else shift, y, weight, bias, count, channels, eps,
            SHIFT=shift is not None, ROWS=rows, CHANNELS=columns,
        )  # fmt: skip
    return y


@triton.jit(do_not_specialize=["N", "H", "W"])
def _interleave(x, bias, y, N, C, H, W, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """x: [B, H + 1, W + 1, 2, 2, C]. y: [B, 2H, 2W, C], with N = B · 2H · 2W pixels."""
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    column, line = pixel % (2 * W), pixel // (2 * W)
    row, sample = line % (2 * H), line // (2 * H)
    source = (sample * (H + 1) + row // 2 + row % 2) * (W + 1) + column // 2 + column % 2
    source = source.to(tl.int64) * 4 + row % 2 * 2 + column % 2
    mask = (pixel[:, None] < N) & (channel[None, :] < C)
    value = tl.load(x + source[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    offsets = pixel.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=mask)


def interleave(x, bias):
    """See `sd.kernels.reference.interleave`. The result is channels-last and not differentiable."""
    assert not (x.requires_grad and torch.is_grad_enabled())
    x = x.contiguous(memory_format=torch.channels_last)
    samples, height, width = len(x), x.shape[2] - 1, x.shape[3] - 1
    shape = (samples, len(bias), 2 * height, 2 * width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    grid, sizes, tile = launch_config(y)
    with torch.cuda.device_of(x):
        _interleave[grid](x, bias, y, *sizes, height, width, **tile)
    return y


@triton.jit(do_not_specialize=["H", "W"])
def _biased_sum(
    x, y, bias, total, N, C, H, W, scale, PAD: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """x, y: [B, H, W, C], with N = B · H · W pixels. total: [B, H, W, C], or [B, H + 1, W + 1, C] with PAD.
    With PAD, the kernel does not write the last row and the last column.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (row[:, None] < N) & (channel[None, :] < C)
    offsets = row[:, None] * C + channel[None, :]
    bias_value = tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(y + offsets, mask=mask, other=0.0).to(tl.float32) + bias_value[None, :]
    if PAD:
        line = row // W
        offsets = (row + line + line // H * (W + 1))[:, None] * C + channel[None, :]
    tl.store(total + offsets, (value * scale).to(total.dtype.element_ty), mask=mask)


class BiasedSum(torch.autograd.Function):
    """See `sd.kernels.reference.biased_sum`."""

    @staticmethod
    def forward(ctx, x, y, bias, scale, pad):
        x = x.contiguous(memory_format=torch.channels_last)
        y = y.contiguous(memory_format=torch.channels_last)
        ctx.scale, ctx.pad = scale, pad
        samples, channels, height, width = x.shape
        shape = (samples, channels, height + pad, width + pad)
        total = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        if pad:
            total[:, :, height] = 0
            total[:, :, :height, width] = 0
        grid, sizes, tile = launch_config(x)
        with torch.cuda.device_of(x):
            _biased_sum[grid](x, y, bias, total, *sizes, height, width, scale, PAD=pad, **tile)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        if ctx.pad:
            grad_output = without_padding(grad_output)
        grad_output = grad_output if ctx.scale == 1.0 else grad_output * ctx.scale
        return grad_output, grad_output, None, None, None


def without_padding(x):
    """Return a channels-last copy of an image without its last row and column.

    If the size of a pixel is a multiple of 16 bytes, memory is copied in words of 16 bytes, which is about
    four times as fast as the copy of single elements.
    """
    pixels = x.permute(0, 2, 3, 1).contiguous()
    is_aligned = pixels.shape[-1] * pixels.element_size() % 16 == 0
    words = pixels.view(torch.complex128) if is_aligned else pixels
    return words[:, :-1, :-1].contiguous().view(x.dtype).permute(0, 3, 1, 2)


def biased_sum(x, y, bias, scale=1.0, pad=False):
    """See `sd.kernels.reference.biased_sum`. The output is channels-last."""
    return BiasedSum.apply(x, y, bias.detach(), scale, pad)


@triton.jit
def _add_bias(x, bias, N, C, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (row[:, None] < N) & (channel[None, :] < C)
    offsets = x + row[:, None] * C + channel[None, :]
    bias_value = tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)
    value = tl.load(offsets, mask=mask, other=0.0).to(tl.float32) + bias_value[None, :]
    tl.store(offsets, value.to(x.dtype.element_ty), mask=mask)


def add_bias(x, bias):
    """See `sd.kernels.reference.add_bias`. x is changed in place only if it is channels-last."""
    x = x.contiguous(memory_format=torch.channels_last)
    grid, sizes, tile = launch_config(x)
    with torch.cuda.device_of(x):
        _add_bias[grid](x, bias, *sizes, **tile)
    return x


def launch_config(x):
    """Return the launch parameters for a channels-last tensor: grid, (rows, channels), and tile size per
    program.
    """
    channels = x.shape[1]
    count = x.numel() // channels
    columns = min(triton.next_power_of_2(channels), 128)
    rows = 2 * BLOCK // columns
    grid = (triton.cdiv(count, rows), triton.cdiv(channels, columns))
    return grid, (count, channels), {"ROWS": rows, "CHANNELS": columns}
