"""Compare the fused linear layer and GEGLU with torch in float64."""

import pytest
import torch
from torch.nn import functional as F

from sd.kernels.gated_linear_triton import LARGE, SMALL, fused_gated_linear, two_step_gated_linear

# The tolerance, relative to the largest value, covers the rounding of the output and of the float32 sum over
# the channels.
ROUNDING = {torch.float32: 2e-6, torch.float16: 6e-4}


def check(function, rows, channels, inner, dtype, device):
    generator = torch.Generator().manual_seed(sum(rows))

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, weight, bias = draw(*rows, channels), draw(2 * inner, channels) / channels**0.5, draw(2 * inner)
    found = function(x, weight, bias)
    value, gate = F.linear(*(tensor.double() for tensor in (x, weight, bias))).chunk(2, dim=-1)
    expected = value * gate * 0.5 * (1 + torch.special.erf(gate / 2**0.5))
    assert found.dtype == dtype and found.shape == (*rows, inner)
    assert (found.double() - expected).abs().max() < ROUNDING[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", ROUNDING)
# The sizes cover a partial tile in each dimension, several row blocks in a group and the last partial group.
@pytest.mark.parametrize(
    ("rows", "channels", "inner"), [((2, 5), 24, 40), ((300,), 64, 128), ((1300,), 8, 72)]
)
def test_small_tile(rows, channels, inner, dtype, kernel_device):
    check(lambda *given: fused_gated_linear(SMALL, *given), rows, channels, inner, dtype, kernel_device)


def test_large_tile(kernel_device):
    check(lambda *given: fused_gated_linear(LARGE, *given), (2, 70), 64, 128, torch.float16, kernel_device)


@pytest.mark.gpu
@pytest.mark.parametrize("function", [LARGE, SMALL, None])
@pytest.mark.parametrize(("rows", "channels"), [(49152, 320), (12288, 640), (3072, 1280), (768, 1280)])
def test_sizes_of_the_prior(function, rows, channels):
    chosen = two_step_gated_linear if function is None else lambda *g: fused_gated_linear(function, *g)
    # two_step_gated_linear also rounds the output of the linear layer to half precision, before GEGLU.
    check(chosen, (rows,), channels, 4 * channels, torch.float16, "cuda")
