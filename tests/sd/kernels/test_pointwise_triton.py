"""Compare the pointwise Triton kernels with torch in float64."""

import pytest
import torch
from torch.nn import functional as F

from sd.kernels.pointwise_triton import add_bias, biased_sum, interleave, layer_norm
from sd.kernels.reference import interleave as reference_interleave

# The tolerance is half a unit in the last place, plus the error of sums in float32.
ROUNDING = {torch.float32: 1e-6, torch.float16: 6e-4}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    ("shape", "scale", "pad"),
    [
        ((2, 8, 3, 5), 1.0, True),
        ((1, 20, 9, 7), 0.5, False),
        ((2, 3, 4, 5), 0.5, True),
        ((2, 160, 2, 7), 1.0, False),
    ],
)
def test_biased_sum_and_its_gradients(shape, scale, pad, dtype, kernel_device):
    generator = torch.Generator().manual_seed(0)
    x, y, grad_output = (torch.randn(shape, generator=generator).to(kernel_device, dtype) for _ in range(3))
    bias = torch.randn(shape[1], generator=generator).to(kernel_device, dtype)
    padding = (0, 1, 0, 1) if pad else (0, 0)
    x, y = x.requires_grad_(), y.contiguous(memory_format=torch.channels_last).requires_grad_()
    found = biased_sum(x, y, bias, scale, pad)
    expected = F.pad((x.double() + y.double() + bias.double()[:, None, None]) * scale, padding)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found.double(), expected, rtol=ROUNDING[dtype], atol=1e-6)
    # The gradient of the padding has no effect.
    for grad_input in torch.autograd.grad(found, (x, y), F.pad(grad_output, padding, value=9.0)):
        assert torch.allclose(grad_input, grad_output * scale)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 48), (1, 3, 1280)])
def test_layer_norm(shape, shifted, dtype, kernel_device):
    check_layer_norm(shape, shifted, dtype, kernel_device)


def check_layer_norm(shape, shifted, dtype, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device, dtype) + 3
    weight, bias, shift = (torch.randn(shape[-1], generator=generator).to(device, dtype) for _ in range(3))
    found = layer_norm(x, weight, bias, 1e-5, shift if shifted else None)
    total = x.double() + shift.double() if shifted else x.double()
    expected = F.layer_norm(total, shape[-1:], weight.double(), bias.double(), 1e-5)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, rtol=ROUNDING[dtype], atol=4 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [(2, 4 * 20, 4, 3), (1, 4 * 160, 2, 6)])
def test_interleave(shape, dtype, kernel_device):
    check_interleave(shape, dtype, kernel_device)


def check_interleave(shape, dtype, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device, dtype)
    bias = torch.randn(shape[1] // 4, generator=generator).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    found = interleave(x, bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, reference_interleave(x, bias))
    images = x.unflatten(1, (4, -1))
    assert torch.equal(found[:, :, 1, 2], images[:, 2, :, 1, 1] + bias)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_add_bias_changes_channels_last_tensors_in_place(dtype, kernel_device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20, 9, 7, generator=generator).to(kernel_device, dtype)
    bias = torch.randn(20, generator=generator).to(kernel_device, dtype)
    expected = x + bias[:, None, None]
    last = x.contiguous(memory_format=torch.channels_last)
    found = add_bias(last, bias)
    assert found.data_ptr() == last.data_ptr()
    assert torch.equal(found, expected) and torch.equal(add_bias(x, bias), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ROUNDING)
def test_sizes_of_the_prior(dtype):
    check_layer_norm((12, 4096, 320), True, dtype, "cuda")
    check_layer_norm((12, 64, 1280), True, dtype, "cuda")
    check_interleave((12, 4 * 640, 33, 33), dtype, "cuda")
    x, y = torch.randn(2, 6, 128, 512, 512, device="cuda", dtype=dtype)
    bias = torch.randn(128, device="cuda", dtype=dtype)
    expected = x.double() + y.double() + bias.double()[:, None, None]
    assert torch.allclose(biased_sum(x, y, bias).double(), expected, rtol=ROUNDING[dtype], atol=1e-5)
