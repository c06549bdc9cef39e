"""Group normalisation and SiLU in Triton, on channels-last tensors. Only the input gets a gradient.

A sample is a matrix of N = H·W rows and C channels, contiguous in memory. A group has few channels (4 of 128
at the VAE's full resolution), so a program reads a tile of rows × adjacent channels and sums each channel.
Each chunk of rows is a separate program. A second, small kernel adds the sums of the chunks for each group.
Sums are in float32, of differences from the sample's first row, so a mean far above the standard deviation
loses no precision. The backward pass needs only x and the moments. With u = xhat·weight + bias and
a = dy · silu'(u) · weight,

    dx = rstd · (a − mean(a) − xhat · mean(a · xhat)), means over the group.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

TILE, WARPS = 4096, 4
MOST_CHANNELS = 128
# Several programs per multiprocessor of a large GPU. More programs only increase the second kernel's work.
PROGRAMS = 2048
# Sizes for which Triton does not compile a separate kernel if they are 1 or a multiple of 16.
SIZES = ["N", "rows", "width", "groups", "chunks", "shift_stride"]


@triton.jit(do_not_specialize=SIZES)
def _channel_sums(x, sums, N, C, rows, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Each channel's sum of x − pivot and of its square over a chunk, into sums [B, chunks, 2, C]."""
    chunk, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < C
    x += sample * N * C
    pivot = tl.load(x + channel, mask=real, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    square = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(0, rows, ROWS):
        row = chunk * rows + start + tl.arange(0, ROWS)
        inside = (row[:, None] < N) & real[None, :]
        value = tl.load(x + row[:, None].to(tl.int64) * C + channel[None, :], mask=inside, other=0.0)
        value = tl.where(inside, value.to(tl.float32) - pivot[None, :], 0.0)
        total += value
        square += value * value
    sums += (sample * tl.num_programs(0) + chunk) * 2 * C
    tl.store(sums + channel, tl.sum(total, 0), mask=real)
    tl.store(sums + C + channel, tl.sum(square, 0), mask=real)


@triton.jit
def _over_chunks(sums, chunks, C, channel, real, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    """Both sums of the given channels over all chunks of a sample."""
    first = tl.zeros([CHUNKS, WIDTH], tl.float32)
    second = tl.zeros([CHUNKS, WIDTH], tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        inside = (chunk[:, None] < chunks) & real[None, :]
        place = sums + chunk[:, None] * 2 * C + channel[None, :]
        first += tl.load(place, mask=inside, other=0.0)
        second += tl.load(place + C, mask=inside, other=0.0)
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit(do_not_specialize=[*SIZES, "C"])
def _moments(
    x, shift, sums, moments, N, C, width, chunks, shift_stride, eps,
    SHIFT: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / standard deviation of each group of x + shift, into moments [B, groups, 2]."""
    group, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    channel, real = group * width + lane, lane < width
    sums += sample * chunks * 2 * C
    total, square = _over_chunks(sums, chunks, C, channel, real, CHUNKS, WIDTH)
    means = tl.load(x + sample * N * C + channel, mask=real, other=0.0).to(tl.float32) + total / N
    if SHIFT:
        means += tl.load(shift + sample * shift_stride + channel, mask=real, other=0.0).to(tl.float32)
    mean = tl.sum(tl.where(real, means, 0.0), 0) / width
    # The squared deviations within each channel, plus those of the channel means.
    spread = square - total * total / N + N * (means - mean) * (means - mean)
    variance = tl.sum(tl.where(real, spread, 0.0), 0) / width / N
    moments += (sample * tl.num_programs(0) + group) * 2
    tl.store(moments, mean)
    tl.store(moments + 1, 1.0 / tl.sqrt(tl.maximum(variance, 0.0) + eps))


@triton.jit
def _of_channels(
    moments, weight, bias, shift, sample, groups, width, shift_stride, channel, real, SHIFT: tl.constexpr
):
    """Per channel: the offset that is subtracted from x, 1 / standard deviation, weight, bias."""
    place = moments + (sample * groups + channel // width) * 2
    mean = tl.load(place, mask=real, other=0.0)
    rstd = tl.load(place + 1, mask=real, other=0.0)
    if SHIFT:
        mean -= tl.load(shift + sample * shift_stride + channel, mask=real, other=0.0).to(tl.float32)
    gain = tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)
    return mean, rstd, gain, offset


@triton.jit(do_not_specialize=SIZES)
def _normalise(
    x, y, moments, weight, bias, shift, N, C, groups, width, rows, shift_stride,
    SILU: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    chunk, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < C
    mean, rstd, gain, offset = _of_channels(
        moments, weight, bias, shift, sample, groups, width, shift_stride, channel, real, SHIFT
    )
    x += sample * N * C
    y += sample * N * C
    for start in range(0, rows, ROWS):
        row = chunk * rows + start + tl.arange(0, ROWS)
        inside = (row[:, None] < N) & real[None, :]
        place = row[:, None].to(tl.int64) * C + channel[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        value = (value - mean[None, :]) * (rstd * gain)[None, :] + offset[None, :]
        if SILU:
            value = value * tl.sigmoid(value)
        tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _pulled_back(value, dy, mean, rstd, gain, offset, SILU: tl.constexpr):
    """xhat and a (see the module's docstring) of a tile."""
    normal = (value - mean[None, :]) * rstd[None, :]
    slope = dy * gain[None, :]
    if SILU:
        before = normal * gain[None, :] + offset[None, :]
        gate = tl.sigmoid(before)
        slope = slope * gate * (1.0 + before * (1.0 - gate))
    return normal, slope


@triton.jit(do_not_specialize=SIZES)
def _slope_sums(
    x, dy, moments, weight, bias, shift, sums, N, C, groups, width, rows, shift_stride,
    SILU: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Each channel's sum of a and of a · xhat over a chunk, into sums [B, chunks, 2, C]."""
    chunk, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < C
    mean, rstd, gain, offset = _of_channels(
        moments, weight, bias, shift, sample, groups, width, shift_stride, channel, real, SHIFT
    )
    x += sample * N * C
    dy += sample * N * C
    first = tl.zeros([ROWS, CHANNELS], tl.float32)
    second = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(0, rows, ROWS):
        row = chunk * rows + start + tl.arange(0, ROWS)
        inside = (row[:, None] < N) & real[None, :]
        place = row[:, None].to(tl.int64) * C + channel[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        # dy is 0 outside the tensor, so a is 0 there too.
        pull = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
        normal, slope = _pulled_back(value, pull, mean, rstd, gain, offset, SILU)
        first += slope
        second += slope * normal
    sums += (sample * tl.num_programs(0) + chunk) * 2 * C
    tl.store(sums + channel, tl.sum(first, 0), mask=real)
    tl.store(sums + C + channel, tl.sum(second, 0), mask=real)


@triton.jit(do_not_specialize=[*SIZES, "C"])
def _slope_means(sums, means, N, C, width, chunks, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    """mean(a) and mean(a · xhat) of a group, into means [B, groups, 2]."""
    group, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    real = lane < width
    sums += sample * chunks * 2 * C
    first, second = _over_chunks(sums, chunks, C, group * width + lane, real, CHUNKS, WIDTH)
    means += (sample * tl.num_programs(0) + group) * 2
    tl.store(means, tl.sum(first, 0) / width / N)
    tl.store(means + 1, tl.sum(second, 0) / width / N)


@triton.jit(do_not_specialize=SIZES)
def _slopes(
    x, dy, dx, moments, means, weight, bias, shift, N, C, groups, width, rows, shift_stride,
    SILU: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    chunk, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < C
    mean, rstd, gain, offset = _of_channels(
        moments, weight, bias, shift, sample, groups, width, shift_stride, channel, real, SHIFT
    )
    means += (sample * groups + channel // width) * 2
    common = tl.load(means, mask=real, other=0.0)
    along = tl.load(means + 1, mask=real, other=0.0)
    x += sample * N * C
    dy += sample * N * C
    dx += sample * N * C
    for start in range(0, rows, ROWS):
        row = chunk * rows + start + tl.arange(0, ROWS)
        inside = (row[:, None] < N) & real[None, :]
        place = row[:, None].to(tl.int64) * C + channel[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        pull = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
        normal, slope = _pulled_back(value, pull, mean, rstd, gain, offset, SILU)
        slope = rstd[None, :] * (slope - common[None, :] - normal * along[None, :])
        tl.store(dx + place, slope.to(dx.dtype.element_ty), mask=inside)


class Plan:
    """The division of a tensor [B, C, H, W] into programs."""

    def __init__(self, x: Tensor, groups: int):
        self.samples, self.channels = x.shape[:2]
        self.rows = x.shape[2] * x.shape[3]
        self.groups, self.width = groups, self.channels // groups
        power = self.channels & -self.channels
        whole = power if power >= 32 else triton.next_power_of_2(self.channels)
        self.tile = {"CHANNELS": min(whole, MOST_CHANNELS), "num_warps": WARPS}
        self.tile["ROWS"] = TILE // self.tile["CHANNELS"]
        self.columns = triton.cdiv(self.channels, self.tile["CHANNELS"])
        wanted = triton.cdiv(PROGRAMS, self.samples * self.columns)
        self.chunk_rows = triton.cdiv(triton.cdiv(self.rows, wanted), self.tile["ROWS"]) * self.tile["ROWS"]
        self.chunks = triton.cdiv(self.rows, self.chunk_rows)
        self.lanes = {"WIDTH": max(triton.next_power_of_2(self.width), 16)}
        self.lanes["CHUNKS"] = max(1024 // self.lanes["WIDTH"], 1)

    @property
    def tiles(self) -> tuple[int, int, int]:
        return self.chunks, self.columns, self.samples

    @property
    def sets(self) -> tuple[int, int]:
        return self.groups, self.samples

    def sums(self, x: Tensor) -> Tensor:
        return x.new_empty(self.samples, self.chunks, 2, self.channels, dtype=torch.float32)

    def pairs(self, x: Tensor) -> Tensor:
        return x.new_empty(self.samples, self.groups, 2, dtype=torch.float32)


class GroupNorm(torch.autograd.Function):
    """See `sd.kernels.reference.group_norm`."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, silu, shift):
        x = x.contiguous(memory_format=torch.channels_last)
        plan = Plan(x, groups)
        sums, moments, y = plan.sums(x), plan.pairs(x), torch.empty_like(x)
        # A shift that all samples share has stride 0. If the shift is None, it is not read.
        strides = 0 if shift is None or len(shift) == 1 else plan.channels
        given = x if shift is None else shift
        kinds = {"SHIFT": shift is not None, "SILU": silu}
        sizes = (plan.rows, plan.channels)
        with torch.cuda.device_of(x):
            _channel_sums[plan.tiles](x, sums, *sizes, plan.chunk_rows, **plan.tile)
            _moments[plan.sets](
                x, given, sums, moments, *sizes, plan.width, plan.chunks, strides, eps,
                SHIFT=kinds["SHIFT"], **plan.lanes,
            )  # fmt: skip
            _normalise[plan.tiles](
                x, y, moments, weight, bias, given, *sizes, groups, plan.width, plan.chunk_rows, strides,
                **kinds, **plan.tile,
            )  # fmt: skip
        ctx.save_for_backward(x, moments, weight, bias, given)
        ctx.plan, ctx.kinds, ctx.strides = plan, kinds, strides
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, moments, weight, bias, shift = ctx.saved_tensors
        plan = ctx.plan
        dy = dy.contiguous(memory_format=torch.channels_last)
        sums, means, dx = plan.sums(x), plan.pairs(x), torch.empty_like(x)
        sizes = (plan.rows, plan.channels)
        rest = (plan.groups, plan.width, plan.chunk_rows, ctx.strides)
        with torch.cuda.device_of(x):
            _slope_sums[plan.tiles](
                x, dy, moments, weight, bias, shift, sums, *sizes, *rest, **ctx.kinds, **plan.tile
            )
            _slope_means[plan.sets](sums, means, *sizes, plan.width, plan.chunks, **plan.lanes)
            _slopes[plan.tiles](
                x, dy, dx, moments, means, weight, bias, shift, *sizes, *rest, **ctx.kinds, **plan.tile
            )
        return dx, None, None, None, None, None, None


def group_norm(x, weight, bias, groups, eps, silu=True, shift=None):
    """See `sd.kernels.reference.group_norm`. x is converted to channels-last; so is the output."""
    if shift is not None:
        shift = shift.detach().contiguous()
    return GroupNorm.apply(x, weight.detach(), bias.detach(), groups, eps, silu, shift)
