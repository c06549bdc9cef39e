"""Compare the scaled gradient of a half-precision function with the gradient of the function in float32."""

import pytest
import torch

from sd.loading.weights import load_parts
from sd.stable_diffusion import StableDiffusion
from sd.unit_gradient import unit_gradient


def test_half_precision_gradient_does_not_underflow_or_overflow():
    """For y = 1e-3 x in half precision, dx is 1e-3 dy even for dy far outside the range of half precision."""
    x = torch.ones(4, 8, requires_grad=True)
    given = torch.tensor([1e-12, 1e-3, 1.0, 1e12])[:, None].expand(4, 8)

    def function(x):
        return (x.half() * torch.tensor(1e-3).half()).float()

    (plain,) = torch.autograd.grad(function(x), x, given)
    assert plain[0].eq(0).all() and not plain[3].isfinite().any()
    (scaled,) = torch.autograd.grad(unit_gradient(function, x), x, given)
    assert torch.allclose(scaled, 1e-3 * given, rtol=2e-3, atol=0)


def test_scaling_by_powers_of_two_is_exact():
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    given = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1e-9], [0], [1e9]])
    (plain,) = torch.autograd.grad(x * 3, x, given)
    (scaled,) = torch.autograd.grad(unit_gradient(lambda x: x * 3, x), x, given)
    assert torch.equal(plain, scaled) and scaled[1].eq(0).all()


@pytest.mark.parametrize("size", [1e-7, 1.0])
def test_a_half_precision_vae_keeps_small_gradients(model_folder, size):
    parts = load_parts(str(model_folder), torch.device("cpu"))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    # The given gradient of the second view is 1000 times as small as that of the first view.
    given = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * size
    given[1] *= 1e-3
    found = []
    for half in (False, True):
        if half:
            parts.vae.half()
        prior = StableDiffusion(parts, torch.device("cpu"))
        image = images.clone().requires_grad_()
        found.append(torch.autograd.grad(prior.encode(image, noise), image, given)[0])
    for exact, rounded in zip(*found, strict=True):
        assert (rounded - exact).norm() < 0.02 * exact.norm()
