"""Compare the fused linear layer and GEGLU with torch in float64."""

import pytest
import torch
from torch.nn import functional as F

from sd.kernels import gated_linear_triton
from sd.kernels.gated_linear_triton import gated_linear, stages_for
from sd.kernels.reference import alternated

# The tolerance, relative to the largest value, covers the rounding of the output and of the float32 sum over
# the channels.
ROUNDING = {torch.float32: 2e-6, torch.float16: 6e-4}


def check(rows, channels, inner, dtype, device):
    generator = torch.Generator().manual_seed(sum(rows))

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, weight, bias = draw(*rows, channels), draw(2 * inner, channels) / channels**0.5, draw(2 * inner)
    found = gated_linear(x, alternated(weight), alternated(bias))
    value, gate = F.linear(*(tensor.double() for tensor in (x, weight, bias))).chunk(2, dim=-1)
    expected = value * gate * 0.5 * (1 + torch.special.erf(gate / 2**0.5))
    assert found.dtype == dtype and found.shape == (*rows, inner)
    assert (found.double() - expected).abs().max() < ROUNDING[dtype] * expected.abs().max()


def test_alternated_rows():
    assert alternated(torch.arange(6.0)).tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("dtype", ROUNDING)
# The sizes cover a partial tile in each dimension, several row blocks in a group and the last partial group.
@pytest.mark.parametrize(
    ("rows", "channels", "inner"), [((2, 5), 24, 40), ((300,), 64, 128), ((1300,), 8, 72)]
)
def test_gated_linear(rows, channels, inner, dtype, kernel_device):
    check(rows, channels, inner, dtype, kernel_device)


def test_number_of_stages_depends_on_the_shared_memory(monkeypatch):
    class FakeTensor:
        is_cuda, device = True, torch.device("cuda:0")

        def __init__(self, size):
            self.element_size = lambda: size

    found = {}
    for name, shared in {"H100": 232448, "RTX 4090": 101376, "T4": 65536}.items():
        properties = {"max_shared_mem": shared}
        monkeypatch.setattr(
            gated_linear_triton, "device_properties", lambda index, properties=properties: properties
        )
        found[name] = [stages_for(FakeTensor(size)) for size in (2, 4)]
    # A pipeline stage takes 32 KB in half precision, and the shared memory of each GPU limits the number of
    # stages.
    assert found == {"H100": [3, 3], "RTX 4090": [3, 1], "T4": [1, 1]}


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "channels"), [(49152, 320), (12288, 640), (3072, 1280), (768, 1280)])
def test_sizes_of_the_prior(rows, channels):
    check((rows,), channels, 4 * channels, torch.float16, "cuda")
