"""Compare values and gradients of Triton's group normalisation with torch in float64."""

import pytest
import torch
from torch.nn import functional as F

from sd.kernels import group_norm_triton
from sd.kernels.group_norm_triton import (
    LaunchConfig,
    group_norm,
    group_norm_and_skip,
    group_norm_of_pair,
)
from sd.kernels.reference import group_norm as reference

# SHAPES lists (samples, channels, height, width, groups). Some shapes have few rows, one row, a channel count
# that is not a multiple of a tile, or many chunks.
SHAPES = [
    (2, 32, 5, 7, 8),
    (1, 8, 1, 1, 2),
    (3, 12, 4, 3, 3),
    (2, 96, 3, 3, 8),
    (1, 8, 48, 48, 4),
    (2, 6, 40, 30, 1),
]
# ROUNDING is the tolerance for the rounding of the output and of the float32 sums. The value for bfloat16 is
# large, because Triton's interpreter truncates values when it converts them to bfloat16.
ROUNDING = {torch.float32: 3e-6, torch.float16: 6e-4, torch.bfloat16: 8e-3}


def random_inputs(shape, dtype, device, mean=0.5):
    generator = torch.Generator().manual_seed(sum(shape))
    samples, channels, height, width, _ = shape

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator)

    deviations = 0.2 + torch.rand(samples, channels, 1, 1, generator=generator)
    x = (draw(samples, channels, height, width) * deviations + mean).to(dtype)
    weight, bias, shift = 1 + 0.3 * draw(channels), draw(channels), draw(samples, channels)
    grad_output = draw(samples, channels, height, width).to(dtype)
    return [tensor.to(device, dtype) for tensor in (x, weight, bias, shift, grad_output)]


def float64_reference(x, weight, bias, groups, eps, silu, shift, grad_output):
    """Return the value and the gradient that torch's autograd computes with all tensors in float64."""
    x = x.double().requires_grad_()
    value = x if shift is None else x + shift.double()[:, :, None, None]
    value = F.group_norm(value, groups, weight.double(), bias.double(), eps)
    value = F.silu(value) if silu else value
    (grad_x,) = torch.autograd.grad(value, x, grad_output.double())
    return value, grad_x


def error(found, expected):
    """Return the maximum absolute difference divided by the maximum absolute expected value."""
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


def assert_matches_float64(function, shape, dtype, device, silu, shifted, mean=0.5, tolerance=None):
    x, weight, bias, shift, grad_output = random_inputs(shape, dtype, device, mean)
    shift = shift if shifted else None
    if shape[0] > 1 and shifted == "common":
        shift = shift[:1]
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    value = function(x, weight, bias, shape[-1], 1e-5, silu, shift)
    (grad_x,) = torch.autograd.grad(value, x, grad_output)
    assert value.dtype == grad_x.dtype == dtype
    expected = float64_reference(x.detach(), weight, bias, shape[-1], 1e-5, silu, shift, grad_output)
    # The reference also rounds after the shift, the norm and the SiLU, so its tolerance is larger.
    tolerance = tolerance or ROUNDING[dtype] * (4 if function is reference else 1)
    assert error(value, expected[0]) < tolerance
    # In very small groups the terms of the gradient cancel to about 0, so a relative error is undefined.
    if x.shape[2] * x.shape[3] * x.shape[1] // shape[-1] > 8:
        assert error(grad_x, expected[1]) < tolerance


VARIANTS = [
    (torch.float32, True, None),
    (torch.float32, False, "each"),
    (torch.float16, True, "common"),
    (torch.bfloat16, False, None),
]
# By default, each variant is tested with the first shape and with half of the other shapes.
CASES = [
    pytest.param(shape, variant, marks=[pytest.mark.slow] if i and (i + j) % 2 else [])
    for i, shape in enumerate(SHAPES)
    for j, variant in enumerate(VARIANTS)
]


@pytest.mark.parametrize("function", [reference, group_norm])
@pytest.mark.parametrize(("shape", "variant"), CASES)
def test_group_norm_equals_float64(function, shape, variant, kernel_device):
    dtype, silu, shifted = variant
    assert_matches_float64(function, shape, dtype, kernel_device, silu, shifted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "silu", "shifted"),
    [(torch.float32, True, None), (torch.float16, False, "each"), (torch.float16, True, "common")],
)
def test_group_norm_without_gradient(shape, dtype, silu, shifted, kernel_device):
    """A group that fits into one program is normalised by a single kernel."""
    x, weight, bias, shift, grad_output = random_inputs(shape, dtype, kernel_device)
    shift = {None: None, "each": shift, "common": shift[:1]}[shifted]
    x = x.contiguous(memory_format=torch.channels_last)
    value = group_norm(x, weight, bias, shape[-1], 1e-5, silu, shift)
    expected = float64_reference(x, weight, bias, shape[-1], 1e-5, silu, shift, grad_output)[0]
    assert value.is_contiguous(memory_format=torch.channels_last)
    assert error(value, expected) < ROUNDING[dtype]


def test_both_kernels_without_gradient_agree(monkeypatch, kernel_device):
    x, weight, bias, shift, _ = random_inputs(SHAPES[2], torch.float32, kernel_device)
    # The shift is a column block of a larger matrix, so its rows are not adjacent in memory.
    shift = torch.cat([shift, shift], dim=1)[:, : len(weight)]
    one = group_norm(x, weight, bias, 3, 1e-5, True, shift)
    monkeypatch.setattr(group_norm_triton, "GROUP_ELEMENTS", 0)
    assert torch.allclose(one, group_norm(x, weight, bias, 3, 1e-5, True, shift), atol=1e-5)
    assert torch.allclose(one, reference(x, weight, bias, 3, 1e-5, True, shift), atol=1e-5)


@pytest.mark.parametrize("group_elements", [0, 32768])
@pytest.mark.parametrize(("first", "second", "groups"), [(64, 32, 3), (32, 32, 4), (8, 4, 2), (32, 128, 5)])
def test_group_norm_of_pair(first, second, groups, group_elements, monkeypatch, kernel_device):
    """Test pairs of tensors with several combinations of channel counts.

    The cases are: a group with channels of both tensors, equal channel counts, channel counts for which no
    tile ends at the border between the tensors, and several tiles for one tensor.
    """
    monkeypatch.setattr(group_norm_triton, "GROUP_ELEMENTS", group_elements)
    check_pair((2, first + second, 5, 3, groups), first, torch.float32, kernel_device)


def check_pair(shape, first, dtype, device):
    x, weight, bias, _, grad_output = random_inputs(shape, dtype, device)
    pair = [part.contiguous(memory_format=torch.channels_last) for part in (x[:, :first], x[:, first:])]
    value = group_norm_of_pair(*pair, weight, bias, shape[-1], 1e-5)
    expected = float64_reference(x, weight, bias, shape[-1], 1e-5, True, None, grad_output)[0]
    assert value.is_contiguous(memory_format=torch.channels_last)
    assert error(value, expected) < ROUNDING[dtype]


@pytest.mark.parametrize("used", [(0, 1), (0,), (1,)])
def test_gradient_of_the_skip_connection_is_added(used, kernel_device):
    x, weight, bias, _, grad_output = random_inputs(SHAPES[0], torch.float32, kernel_device)
    x.requires_grad_()
    found, expected = (
        [(value * grad_output.cos(), skip * grad_output)[number].sum() for number in used]
        for value, skip in (
            group_norm_and_skip(x, weight, bias, 8, 1e-5),
            (reference(x, weight, bias, 8, 1e-5), x),
        )
    )
    (grad_x,) = torch.autograd.grad(sum(found), x)
    (expected_grad,) = torch.autograd.grad(sum(expected), x)
    assert torch.allclose(grad_x, expected_grad, atol=1e-5) and grad_x.abs().max() > 0.1


def test_shapes_include_several_chunks_and_columns():
    configs = [LaunchConfig(torch.empty(shape[:4]), shape[4]) for shape in SHAPES]
    assert any(config.chunks > 1 for config in configs) and any(config.columns > 1 for config in configs)


def test_large_mean_loses_no_precision(kernel_device):
    """At a mean of 500, the float32 spacing is 3e-5, and the error of torch's float32 kernel is 0.04."""
    assert_matches_float64(
        group_norm, SHAPES[0], torch.float32, kernel_device, True, None, mean=500.0, tolerance=5e-4
    )


def test_any_memory_layout_gives_channels_last(kernel_device):
    x, weight, bias, _, grad_output = random_inputs(SHAPES[0], torch.float32, kernel_device)
    value = group_norm(x.requires_grad_(), weight, bias, 8, 1e-5)
    assert value.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(value, reference(x, weight, bias, 8, 1e-5), atol=1e-5)
    # The gradient of a sum has strides 0, because it is an expanded scalar.
    (grad_x,) = torch.autograd.grad(value.sum(), x)
    (expected,) = torch.autograd.grad(reference(x, weight, bias, 8, 1e-5).sum(), x)
    assert torch.allclose(grad_x, expected, atol=1e-5)


def test_only_input_and_moments_are_saved(kernel_device):
    saved = []
    x = random_inputs(SHAPES[0], torch.float32, kernel_device)[0]
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.ones(32, device=kernel_device)

    def note(tensor):
        saved.append((tensor.data_ptr(), tensor.numel()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        group_norm(x, weight, weight, 8, 1e-5)
    assert {offsets for offsets, size in saved if size > 2 * 8 * 2 + 32} == {x.data_ptr()}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "shape",
    [
        (6, 128, 512, 512, 32),
        (6, 256, 256, 256, 32),
        (6, 512, 64, 64, 32),
        (12, 320, 64, 64, 32),
        (12, 1920, 16, 16, 32),
        (12, 2560, 8, 8, 32),
    ],
)
def test_sizes_of_the_prior(shape, dtype):
    assert_matches_float64(
        group_norm, shape, dtype, "cuda", True, "each", tolerance=max(ROUNDING[dtype], 1e-5)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(640, 32), (960, 32), (1280, 16), (2560, 16), (2560, 8)])
def test_sizes_of_the_denoiser_without_gradient(size):
    shape = (12, size[0], size[1], size[1], 32)
    x, weight, bias, shift, grad_output = random_inputs(shape, torch.float16, "cuda")
    value = group_norm(x, weight, bias, 32, 1e-5, True, shift)
    expected = float64_reference(x, weight, bias, 32, 1e-5, True, shift, grad_output)[0]
    assert error(value, expected) < ROUNDING[torch.float16]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("first", "second", "size"),
    [(640, 320, 64), (320, 320, 64), (1280, 640, 32), (640, 320, 32), (1280, 1280, 8)],
)
def test_pairs_of_the_denoiser(first, second, size):
    check_pair((12, first + second, size, size, 32), first, torch.float16, "cuda")


@pytest.mark.gpu
def test_offsets_beyond_32_bits():
    x = torch.zeros(17, 128, 1024, 1024, device="cuda", dtype=torch.float16)
    x = x.to(memory_format=torch.channels_last)
    x[-1] = torch.randn(128, 1024, 1024, device="cuda", dtype=torch.float16)
    assert x.numel() > 2**31
    weight = torch.ones(128, device="cuda", dtype=torch.float16)
    value = group_norm(x, weight, 0 * weight, 32, 1e-5)
    expected = reference(x[-1:], weight, 0 * weight, 32, 1e-5)
    assert torch.allclose(value[-1:], expected, atol=4e-3)
    assert not value[:-1].any()
