"""Compare the convolution of images with torch in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sd.kernels.fused_blocks import FrozenConv2d
from sd.kernels.image_convolution_triton import image_convolution
from sd.kernels.select import triton_kernels

# The tolerance, relative to the largest value, covers the rounding of the output and of the float32 sum of
# products.
ROUNDING = {torch.float32: 1e-6, torch.float16: 6e-4}


def check(shape, out_channels, dtype, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device, dtype)
    weight = torch.randn(out_channels, shape[1], 3, 3, generator=generator).to(device, dtype)
    bias = torch.randn(out_channels, generator=generator).to(device, dtype)
    found = image_convolution(x, weight, bias)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    assert (found.double() - expected).abs().max() < ROUNDING[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    ("shape", "out_channels"), [((2, 3, 5, 9), 8), ((1, 4, 12, 11), 130), ((1, 1, 1, 1), 3)]
)
def test_image_convolution(shape, out_channels, dtype, kernel_device):
    check(shape, out_channels, dtype, kernel_device)


def test_convolution_of_few_channels_uses_the_kernel_and_has_the_gradient(kernel_device):
    convolution = nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False).to(kernel_device)
    frozen, calls = FrozenConv2d(convolution, triton_kernels()), []
    convolve = frozen._kernels.image_convolution
    object.__setattr__(frozen._kernels, "image_convolution", lambda *x: calls.append(x) or convolve(*x))
    x = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(kernel_device)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    found, expected = (function(leaf) for function, leaf in zip((frozen, convolution), leaves, strict=True))
    assert len(calls) == 1 and torch.allclose(found, expected, atol=1e-5)
    grads = [
        torch.autograd.grad(y.square().sum(), leaf)[0]
        for y, leaf in zip((found, expected), leaves, strict=True)
    ]
    assert torch.allclose(*grads, atol=1e-4)
    strided = FrozenConv2d(
        nn.Conv2d(3, 4, 3, padding=1, stride=2).requires_grad_(False).to(x), triton_kernels()
    )
    assert strided(x).shape == (1, 4, 2, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("shape", "out_channels"), [((6, 3, 512, 512), 128), ((6, 4, 64, 64), 320)])
def test_sizes_of_the_prior(shape, out_channels, dtype):
    check(shape, out_channels, dtype, "cuda")
