"""Triton kernels for group normalisation and SiLU of channels-last tensors. Only the input gets a gradient.

A sample is a contiguous matrix with N = H·W rows and C channels. A group has few channels (4 of 128 at the
VAE's full resolution). Each Triton program therefore reads a chunk of rows of several adjacent channels and
sums each channel. A second, small kernel adds the sums of the chunks for each group and computes the moments
of the group: the mean and rstd = 1 / standard deviation. The sums are in float32. The sample's first row is
subtracted before summation, so precision is kept even if the mean is far above the standard deviation. The
backward pass needs only x and the moments. With xhat = (x − mean) · rstd, u = xhat · weight + bias and a = dy
· silu'(u) · weight, the gradient is

    dx = rstd · (a − mean(a) − xhat · mean(a · xhat)),
where mean(…) is the mean over the group. If no gradient is needed and a group of a sample fits into the
registers of one program, a single kernel computes the whole normalisation.
"""

import math

import torch
import triton
from torch import Tensor
from triton import language as tl

from sd.kernels.triton_math import sigmoid

TILE, WARPS = 4096, 4
# Numbers of stages of the software pipelines, for the kernels that compute sums and for the kernels that
# write a tensor. With n stages, a program loads n − 1 tiles in advance, so 1 means no pipeline.
SUM_STAGES, OUTPUT_STAGES = 2, 1
MAX_TILE_CHANNELS = 128
# The target number of programs: several per multiprocessor of a large GPU. More programs only increase the
# number of chunks whose sums the second kernel adds.
PROGRAMS = 2048
# A group is normalised by a single program if it has at most this number of elements, with rows and channels
# rounded up to powers of two.
GROUP_ELEMENTS = 32768
# Arguments that Triton must not specialise. Otherwise, separate kernels are compiled for the value 1 and for
# multiples of 16.
SIZES = ["N", "rows", "width", "groups", "chunks", "shift_stride"]


@triton.jit(do_not_specialize=SIZES)
def _channel_sums(
    x, other, sums, N, C, first, rows,
    OTHER: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write each channel's sums of x − pivot and (x − pivot)² over a chunk to sums [B, chunks, 2, C]. The
    pivot is the value in the sample's first row.

    OTHER: whether the channels from `first` on are those of the tensor `other`. Each program reads only one
    of the two tensors.
    """
    chunk, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < C
    stride, source = C, channel
    if OTHER:
        stride = first
        if tl.program_id(1) * CHANNELS >= first:
            x, stride, source = other, C - first, channel - first
    x += sample * N * stride
    pivot = tl.load(x + source, mask=channel_mask, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    square = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in tl.range(0, rows, ROWS, num_stages=STAGES):
        row = chunk * rows + start + tl.arange(0, ROWS)
        mask = (row[:, None] < N) & channel_mask[None, :]
        value = tl.load(x + row[:, None].to(tl.int64) * stride + source[None, :], mask=mask, other=0.0)
        value = tl.where(mask, value.to(tl.float32) - pivot[None, :], 0.0)
        total += value
        square += value * value
    sums += (sample * tl.num_programs(0) + chunk) * 2 * C
    tl.store(sums + channel, tl.sum(total, 0), mask=channel_mask)
    tl.store(sums + C + channel, tl.sum(square, 0), mask=channel_mask)


@triton.jit
def _load_pair(x, other, row, C, first, channel, mask, OTHER: tl.constexpr):
    """Load values of x, or of a pair of tensors whose channels are concatenated."""
    if OTHER:
        is_first = channel < first
        value = tl.load(x + row * first + channel, mask=mask & is_first, other=0.0).to(tl.float32)
        value += tl.load(other + row * (C - first) + channel - first, mask=mask & ~is_first, other=0.0)
    else:
        value = tl.load(x + row * C + channel, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _sum_over_chunks(sums, chunks, C, channel, channel_mask, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the two sums of each channel, added over all chunks of a sample."""
    first = tl.zeros([CHUNKS, WIDTH], tl.float32)
    second = tl.zeros([CHUNKS, WIDTH], tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        mask = (chunk[:, None] < chunks) & channel_mask[None, :]
        offsets = sums + chunk[:, None] * 2 * C + channel[None, :]
        first += tl.load(offsets, mask=mask, other=0.0)
        second += tl.load(offsets + C, mask=mask, other=0.0)
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit(do_not_specialize=[*SIZES, "C"])
def _moments(
    x, other, shift, sums, moments, N, C, first, width, chunks, shift_stride, eps,
    OTHER: tl.constexpr, SHIFT: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write the mean and 1 / standard deviation of each group of x + shift to moments [B, groups, 2]."""
    group, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    index = tl.arange(0, WIDTH)
    channel, channel_mask = group * width + index, index < width
    sums += sample * chunks * 2 * C
    total, square = _sum_over_chunks(sums, chunks, C, channel, channel_mask, CHUNKS, WIDTH)
    means = _load_pair(x, other, sample * N, C, first, channel, channel_mask, OTHER) + total / N
    if SHIFT:
        means += tl.load(shift + sample * shift_stride + channel, mask=channel_mask, other=0.0).to(tl.float32)
    mean = tl.sum(tl.where(channel_mask, means, 0.0), 0) / width
    # The sum of the squared deviations of each channel from the group's mean: the deviations from the
    # channel's mean plus N times the deviation of the channel's mean.
    deviations = square - total * total / N + N * (means - mean) * (means - mean)
    variance = tl.sum(tl.where(channel_mask, deviations, 0.0), 0) / width / N
    moments += (sample * tl.num_programs(0) + group) * 2
    tl.store(moments, mean)
    tl.store(moments + 1, 1.0 / tl.sqrt(tl.maximum(variance, 0.0) + eps))


@triton.jit(do_not_specialize=["N", "shift_stride"])
def _normalise_groups(
    x, other, y, weight, bias, shift, N, C, first, shift_stride, eps, WIDTH: tl.constexpr,
    OTHER: tl.constexpr, SILU: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Normalise one group of WIDTH channels of one sample. ROWS: a power of two, at least N. CHANNELS: a
    power of two, at least WIDTH.
    """
    group, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    index, row = tl.arange(0, CHANNELS), tl.arange(0, ROWS)
    channel, channel_mask = group * WIDTH + index, index < WIDTH
    mask = (row[:, None] < N) & channel_mask[None, :]
    offsets = sample * N * C + row[:, None] * C + channel[None, :]
    value = _load_pair(x, other, sample * N + row[:, None], C, first, channel[None, :], mask, OTHER)
    if SHIFT:
        value += tl.load(shift + sample * shift_stride + channel, mask=channel_mask, other=0.0).to(tl.float32)
    value = tl.where(mask, value, 0.0)
    mean = tl.sum(tl.sum(value, 1), 0) / WIDTH / N
    value = tl.where(mask, value - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(tl.sum(value * value, 1), 0) / WIDTH / N + eps)
    weight_value = tl.load(weight + channel, mask=channel_mask, other=0.0).to(tl.float32)
    bias_value = tl.load(bias + channel, mask=channel_mask, other=0.0).to(tl.float32)
    value = value * (rstd * weight_value)[None, :] + bias_value[None, :]
    if SILU:
        value = value * sigmoid(value)
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _load_channel_values(
    moments, weight, bias, shift, sample, groups, width, shift_stride, channel, channel_mask,
    SHIFT: tl.constexpr,
):  # fmt: skip
    """Return four values for each channel: mean − shift (which is subtracted from x), rstd, rstd · weight,
    and bias.
    """
    offsets = moments + (sample * groups + channel // width) * 2
    mean = tl.load(offsets, mask=channel_mask, other=0.0)
    rstd = tl.load(offsets + 1, mask=channel_mask, other=0.0)
    if SHIFT:
        mean -= tl.load(shift + sample * shift_stride + channel, mask=channel_mask, other=0.0).to(tl.float32)
    weight_value = tl.load(weight + channel, mask=channel_mask, other=0.0).to(tl.float32)
    bias_value = tl.load(bias + channel, mask=channel_mask, other=0.0).to(tl.float32)
    return mean, rstd, rstd * weight_value, bias_value


@triton.jit(do_not_specialize=SIZES)
def _normalise(
    x, other, y, moments, weight, bias, shift, N, C, first, groups, width, rows, shift_stride,
    OTHER: tl.constexpr, SILU: tl.constexpr, SHIFT: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    chunk, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < C
    mean, _, scale, bias_value = _load_channel_values(
        moments, weight, bias, shift, sample, groups, width, shift_stride, channel, channel_mask, SHIFT
    )
    stride, source = C, channel
    if OTHER:
        stride = first
        if tl.program_id(1) * CHANNELS >= first:
            x, stride, source = other, C - first, channel - first
    x += sample * N * stride
    y += sample * N * C
    for start in tl.range(0, rows, ROWS, num_stages=STAGES):
        row = chunk * rows + start + tl.arange(0, ROWS)
        mask = (row[:, None] < N) & channel_mask[None, :]
        offsets = row[:, None].to(tl.int64) * C + channel[None, :]
        value = tl.load(x + row[:, None].to(tl.int64) * stride + source[None, :], mask=mask, other=0.0)
        value = (value.to(tl.float32) - mean[None, :]) * scale[None, :] + bias_value[None, :]
        if SILU:
            value = value * sigmoid(value)
        tl.store(y + offsets, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _grad_pre_activation(centred, dy, scale, bias_value, SILU: tl.constexpr):
    """Return dy · silu'(u) of a tile, with u = centred · scale + bias (see the module's docstring)."""
    if SILU:
        pre_activation = centred * scale[None, :] + bias_value[None, :]
        gate = sigmoid(pre_activation)
        dy = dy * gate * (1.0 + pre_activation * (1.0 - gate))
    return dy


@triton.jit(do_not_specialize=SIZES)
def _grad_sums(
    x, dy, moments, weight, bias, shift, sums, N, C, groups, width, rows, shift_stride,
    SILU: tl.constexpr, SHIFT: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write each channel's sums of a and a · xhat over a chunk to sums [B, chunks, 2, C]."""
    chunk, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < C
    mean, rstd, scale, bias_value = _load_channel_values(
        moments, weight, bias, shift, sample, groups, width, shift_stride, channel, channel_mask, SHIFT
    )
    weight_value = tl.load(weight + channel, mask=channel_mask, other=0.0).to(tl.float32)
    x += sample * N * C
    dy += sample * N * C
    # `first` is the sum of a / weight, and `second` is the sum of (a / weight) · (x − mean). After the loop,
    # `first` is multiplied by weight and `second` by rstd · weight.
    first = tl.zeros([ROWS, CHANNELS], tl.float32)
    second = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in tl.range(0, rows, ROWS, num_stages=STAGES):
        row = chunk * rows + start + tl.arange(0, ROWS)
        mask = (row[:, None] < N) & channel_mask[None, :]
        offsets = row[:, None].to(tl.int64) * C + channel[None, :]
        centred = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) - mean[None, :]
        # Outside the tensor, dy is loaded as 0, so the values there add nothing to the sums.
        grad = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
        grad = _grad_pre_activation(centred, grad, scale, bias_value, SILU)
        first += grad
        second += grad * centred
    sums += (sample * tl.num_programs(0) + chunk) * 2 * C
    tl.store(sums + channel, tl.sum(first, 0) * weight_value, mask=channel_mask)
    tl.store(sums + C + channel, tl.sum(second, 0) * scale, mask=channel_mask)


@triton.jit(do_not_specialize=[*SIZES, "C"])
def _grad_means(sums, means, N, C, width, chunks, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    """Write mean(a) and mean(a · xhat) of a group to means [B, groups, 2]."""
    group, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    index = tl.arange(0, WIDTH)
    channel_mask = index < width
    sums += sample * chunks * 2 * C
    first, second = _sum_over_chunks(sums, chunks, C, group * width + index, channel_mask, CHUNKS, WIDTH)
    means += (sample * tl.num_programs(0) + group) * 2
    tl.store(means, tl.sum(first, 0) / width / N)
    tl.store(means + 1, tl.sum(second, 0) / width / N)


@triton.jit(do_not_specialize=SIZES)
def _grad_input(
    x, dy, skip, dx, moments, means, weight, bias, shift, N, C, groups, width, rows, shift_stride,
    SILU: tl.constexpr, SHIFT: tl.constexpr, SKIP: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write the gradient of x to dx. skip: a second gradient of x, which is added to the first only if SKIP
    is true.
    """
    chunk, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < C
    mean, rstd, scale, bias_value = _load_channel_values(
        moments, weight, bias, shift, sample, groups, width, shift_stride, channel, channel_mask, SHIFT
    )
    means += (sample * groups + channel // width) * 2
    constant = -rstd * tl.load(means, mask=channel_mask, other=0.0)
    slope = -rstd * rstd * tl.load(means + 1, mask=channel_mask, other=0.0)
    x += sample * N * C
    dy += sample * N * C
    skip += sample * N * C
    dx += sample * N * C
    for start in tl.range(0, rows, ROWS, num_stages=STAGES):
        row = chunk * rows + start + tl.arange(0, ROWS)
        mask = (row[:, None] < N) & channel_mask[None, :]
        offsets = row[:, None].to(tl.int64) * C + channel[None, :]
        centred = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) - mean[None, :]
        grad = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32)
        grad = _grad_pre_activation(centred, grad, scale, bias_value, SILU)
        grad = grad * scale[None, :] + (centred * slope[None, :] + constant[None, :])
        if SKIP:
            grad += tl.load(skip + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + offsets, grad.to(dx.dtype.element_ty), mask=mask)


class LaunchConfig:
    """The division of a tensor [B, C, H, W] into programs."""

    def __init__(self, x: Tensor, groups: int, other_channels: int = 0):
        """other_channels: the number of channels of a tensor that is concatenated with x, or 0."""
        self.samples, self.first = x.shape[:2]
        self.channels = self.first + other_channels
        self.rows = x.shape[2] * x.shape[3]
        self.groups, self.width = groups, self.channels // groups
        common = math.gcd(self.first, self.channels)
        power = common & -common
        channels_per_tile = power if power >= 32 else triton.next_power_of_2(self.channels)
        # True if each tile contains channels of only one of the two concatenated tensors.
        self.separable = not other_channels or power >= 32
        self.tile_block = {"CHANNELS": min(channels_per_tile, MAX_TILE_CHANNELS), "num_warps": WARPS}
        self.tile_block["ROWS"] = TILE // self.tile_block["CHANNELS"]
        self.columns = triton.cdiv(self.channels, self.tile_block["CHANNELS"])
        chunks_wanted = triton.cdiv(PROGRAMS, self.samples * self.columns)
        self.chunk_rows = (
            triton.cdiv(triton.cdiv(self.rows, chunks_wanted), self.tile_block["ROWS"])
            * self.tile_block["ROWS"]
        )
        self.chunks = triton.cdiv(self.rows, self.chunk_rows)
        self.group_block = {"WIDTH": max(triton.next_power_of_2(self.width), 16)}
        self.group_block["CHUNKS"] = max(1024 // self.group_block["WIDTH"], 1)

    @property
    def tile_grid(self) -> tuple[int, int, int]:
        return self.chunks, self.columns, self.samples

    @property
    def group_grid(self) -> tuple[int, int]:
        return self.groups, self.samples

    def empty_sums(self, x: Tensor) -> Tensor:
        return x.new_empty(self.samples, self.chunks, 2, self.channels, dtype=torch.float32)

    def empty_pairs(self, x: Tensor) -> Tensor:
        return x.new_empty(self.samples, self.groups, 2, dtype=torch.float32)


class GroupNorm(torch.autograd.Function):
    """Return the normalised x, and x. See `sd.kernels.reference.group_norm_and_skip`.

    The kernel that computes the gradient of the normalisation also adds the gradient of the second output.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, silu, shift):
        ctx.set_materialize_grads(False)
        config = LaunchConfig(x, groups)
        sums, moments, y = config.empty_sums(x), config.empty_pairs(x), torch.empty_like(x)
        # A shift that is the same for all samples has stride 0. If the shift is None, x is passed instead,
        # but the kernels do not read it as a shift.
        shift_stride = 0 if shift is None or len(shift) == 1 else shift.stride(0)
        shift_or_x = x if shift is None else shift
        flags = {"SHIFT": shift is not None, "SILU": silu}
        normalise(config, (x, x, y), (weight, bias, shift_or_x), (sums, moments), shift_stride, eps, **flags)
        ctx.save_for_backward(x, moments, weight, bias, shift_or_x)
        ctx.config, ctx.flags, ctx.shift_stride = config, flags, shift_stride
        return y, x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, skip):
        if dy is None:
            return skip, None, None, None, None, None, None
        x, moments, weight, bias, shift = ctx.saved_tensors
        config = ctx.config
        dy = dy.contiguous(memory_format=torch.channels_last)
        if skip is not None:
            skip = skip.contiguous(memory_format=torch.channels_last)
        sums, means, dx = config.empty_sums(x), config.empty_pairs(x), torch.empty_like(x)
        sizes = (config.rows, config.channels)
        more_sizes = (config.groups, config.width, config.chunk_rows, ctx.shift_stride)
        options = ctx.flags | config.tile_block
        with torch.cuda.device_of(x):
            _grad_sums[config.tile_grid](
                x, dy, moments, weight, bias, shift, sums, *sizes, *more_sizes, STAGES=SUM_STAGES, **options
            )
            _grad_means[config.group_grid](
                sums, means, *sizes, config.width, config.chunks, **config.group_block
            )
            _grad_input[config.tile_grid](
                x, dy, dy if skip is None else skip, dx, moments, means, weight, bias, shift,
                *sizes, *more_sizes, SKIP=skip is not None, STAGES=OUTPUT_STAGES, **options,
            )  # fmt: skip
        return dx, None, None, None, None, None, None


def normalise(config, tensors, parameters, buffers, shift_stride, eps, SHIFT, SILU):
    """Compute moments and output. tensors: x, a tensor that is concatenated with x (x again if there is
    none), and the output. parameters: weight, bias and shift. buffers: sums and moments.
    """
    (x, other, y), (weight, bias, shift), (sums, moments) = tensors, parameters, buffers
    has_other = config.first < config.channels
    sizes = (config.rows, config.channels, config.first)
    with torch.cuda.device_of(x):
        _channel_sums[config.tile_grid](
            x, other, sums, *sizes, config.chunk_rows, OTHER=has_other, STAGES=SUM_STAGES, **config.tile_block
        )
        _moments[config.group_grid](
            x, other, shift, sums, moments, *sizes, config.width, config.chunks, shift_stride, eps,
            OTHER=has_other, SHIFT=SHIFT, **config.group_block,
        )  # fmt: skip
        _normalise[config.tile_grid](
            x, other, y, moments, weight, bias, shift, *sizes, config.groups, config.width,
            config.chunk_rows, shift_stride, OTHER=has_other, SHIFT=SHIFT, SILU=SILU, STAGES=OUTPUT_STAGES,
            **config.tile_block,
        )  # fmt: skip


def normalise_groups(x, weight, bias, groups, eps, silu, shift, other=None):
    """Return the normalised x, computed by one kernel, or None if a group is too large for one program.

    other: a tensor that is concatenated with x.
    """
    samples, first, height, width = x.shape
    channels = first if other is None else first + other.shape[1]
    rows, group_width = triton.next_power_of_2(height * width), channels // groups
    columns = triton.next_power_of_2(group_width)
    if rows * columns > GROUP_ELEMENTS:
        return None
    y = empty_image(x, channels)
    shift_stride = 0 if shift is None or len(shift) == 1 else shift.stride(0)
    with torch.cuda.device_of(x):
        _normalise_groups[groups, samples](
            x, x if other is None else other, y, weight, bias, x if shift is None else shift,
            height * width, channels, first, shift_stride, eps,
            WIDTH=group_width, OTHER=other is not None, SILU=silu, SHIFT=shift is not None,
            ROWS=rows, CHANNELS=columns, num_warps=max(4, min(rows * columns // 2048, 16)),
        )  # fmt: skip
    return y


def group_norm_and_skip(x, weight, bias, groups, eps, silu=True, shift=None):
    """See `sd.kernels.reference.group_norm_and_skip`. x is converted to channels-last. The output is also
    channels-last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = weight.detach(), bias.detach()
    if shift is not None:
        shift = shift.detach()
        shift = shift if shift.stride(1) == 1 else shift.contiguous()
    if not (x.requires_grad and torch.is_grad_enabled()):
        y = normalise_groups(x, weight, bias, groups, eps, silu, shift)
        if y is not None:
            return y, x
    return GroupNorm.apply(x, weight, bias, groups, eps, silu, shift)


def empty_image(x, channels):
    """Return a new channels-last tensor with the size of x, but with another number of channels."""
    return x.new_empty(len(x), *x.shape[2:], channels).permute(0, 3, 1, 2)


def group_norm_of_pair(x, other, weight, bias, groups, eps):
    """See `sd.kernels.reference.group_norm_of_pair`. The output is channels-last."""
    assert not ((x.requires_grad or other.requires_grad) and torch.is_grad_enabled())
    x, other = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, other))
    y = normalise_groups(x, weight, bias, groups, eps, True, None, other)
    if y is not None:
        return y
    config = LaunchConfig(x, groups, other.shape[1])
    if not config.separable:
        return group_norm(torch.cat([x, other], dim=1), weight, bias, groups, eps)
    y, buffers = empty_image(x, config.channels), (config.empty_sums(x), config.empty_pairs(x))
    normalise(config, (x, other, y), (weight, bias, x), buffers, 0, eps, SHIFT=False, SILU=True)
    return y


def group_norm(*inputs):
    """See `sd.kernels.reference.group_norm`."""
    return group_norm_and_skip(*inputs)[0]
