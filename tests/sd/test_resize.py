"""Compare the resize by matrix products with torch."""

import pytest
import torch
from torch.nn import functional as F

from sd.resize import resized, resized_by_products


def values_and_gradient(function, image, side):
    image = image.clone().requires_grad_()
    found = function(image, side)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found)
    (gradient,) = torch.autograd.grad((found * weights).sum(), image)
    return found.detach(), gradient


def by_torch(image, side):
    return F.interpolate(image, (side, side), mode="bilinear", align_corners=False, antialias=True)


@pytest.mark.parametrize("size", [(64, 64), (50, 23), (5, 9)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_products_equal_torch(size, channels_last, kernel_device):
    image = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0)).to(kernel_device)
    if channels_last:
        image = image.to(memory_format=torch.channels_last)
    expected = values_and_gradient(by_torch, image, 8)
    for ours, exact in zip(values_and_gradient(resized_by_products, image, 8), expected, strict=True):
        assert ours.shape == exact.shape and exact.abs().max() > 0.01
        assert torch.allclose(ours, exact, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_resize_keeps_images_of_the_right_size(device):
    image = torch.rand(1, 3, 12, 12, device=device)
    assert resized(image, 12) is image
    assert torch.allclose(resized(image, 5), by_torch(image, 5), atol=1e-6)
    assert torch.allclose(resized(image.double(), 5), by_torch(image.double(), 5), atol=1e-12)
