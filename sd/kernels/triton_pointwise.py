"""What surrounds the denoiser's and the VAE's large products, each as one pass over memory, in Triton."""

import torch
import triton
from triton import language as tl

BLOCK = 1024


@triton.jit
def _geglu(x, y, inner, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    value = tl.load(x + row * 2 * inner + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * inner + inner + column, mask=inside, other=0.0).to(tl.float32)
    value = value * 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + row * inner + column, value.to(y.dtype.element_ty), mask=inside)


def geglu(x):
    """See `sd.kernels.reference.geglu`. Forward only."""
    assert not (x.requires_grad and torch.is_grad_enabled())
    x = x.contiguous()
    inner = x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], inner)
    block = min(triton.next_power_of_2(inner), BLOCK)
    with torch.cuda.device_of(x):
        _geglu[(y.numel() // inner, triton.cdiv(inner, block))](x, y, inner, BLOCK=block)
    return y


@triton.jit
def _biased_sum(x, y, bias, total, N, C, scale, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (row[:, None] < N) & (channel[None, :] < C)
    place = row[:, None] * C + channel[None, :]
    offset = tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(y + place, mask=inside, other=0.0).to(tl.float32) + offset[None, :]
    tl.store(total + place, (value * scale).to(total.dtype.element_ty), mask=inside)


class BiasedSum(torch.autograd.Function):
    """See `sd.kernels.reference.biased_sum`."""

    @staticmethod
    def forward(ctx, x, y, bias, scale):
        x = x.contiguous(memory_format=torch.channels_last)
        y = y.contiguous(memory_format=torch.channels_last)
        ctx.scale = scale
        channels = x.shape[1]
        count = x.numel() // channels
        columns = min(triton.next_power_of_2(channels), 128)
        rows = 2 * BLOCK // columns
        total = torch.empty_like(x)
        grid = (triton.cdiv(count, rows), triton.cdiv(channels, columns))
        with torch.cuda.device_of(x):
            _biased_sum[grid](x, y, bias, total, count, channels, scale, ROWS=rows, CHANNELS=columns)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, pull):
        pull = pull if ctx.scale == 1.0 else pull * ctx.scale
        return pull, pull, None, None


def biased_sum(x, y, bias, scale=1.0):
    """See `sd.kernels.reference.biased_sum`; the answer is channels-last."""
    return BiasedSum.apply(x, y, bias.detach(), scale)
