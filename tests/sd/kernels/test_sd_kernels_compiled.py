"""Test that the prior's kernels compile for a GPU with all argument types of a run."""

import pytest
from triton_compile import compile_for_gpu

NORM = """
import torch
from sd.kernels.group_norm_triton import group_norm_and_skip, group_norm_of_pair
big, odd = (torch.float16, (2, 128, 64, 64)), (torch.float32, (1, 12, 5, 5))
for (dtype, shape), silu, shifted in ((big, True, True), (big, True, False), (odd, False, True)):
    x = torch.zeros(shape, dtype=dtype, requires_grad=True)
    weight = torch.ones(shape[1], dtype=dtype)
    shift = weight[None] if shifted else None
    y, skip = group_norm_and_skip(x, weight, weight, 4, 1e-5, silu, shift)
    torch.autograd.grad(y + skip if silu else y, x, torch.ones_like(y))
    group_norm_of_pair(x.detach(), x.detach(), torch.cat([weight] * 2), torch.cat([weight] * 2), 4, 1e-5)
    group_norm_and_skip(x[:, :, :5, :5].detach(), weight, weight, 4, 1e-5, silu, shift)
"""
OTHERS = """
import torch
from sd.kernels.pointwise_triton import add_bias, biased_sum, interleave, layer_norm
for dtype in (torch.float16, torch.float32):
    for channels in (320, 12):
        x = torch.zeros(2, channels, 8, 8, dtype=dtype)
        bias = x[0, :, 0, 0]
        biased_sum(x, x, bias, 0.5)
        biased_sum(x, x, bias, 1.0, True)
        add_bias(x, bias)
        rows = torch.zeros(6, channels, dtype=dtype)
        interleave(torch.zeros(2, 4 * channels, 3, 4, dtype=dtype), bias)
        for shift in (None, bias):
            layer_norm(rows, bias, bias, 1e-5, shift)
"""
GATED = """
import torch
from sd.kernels.gated_linear_triton import gated_linear
for channels, inner in ((320, 1280), (20, 40)):
    weight = torch.zeros(2 * inner, channels, dtype=torch.float16)
    gated_linear(torch.zeros(3, channels, dtype=torch.float16), weight, weight[:, 0].contiguous())
"""
IMAGE = """
import torch
from sd.kernels.image_convolution_triton import image_convolution
for channels, out_channels in ((3, 128), (4, 320), (4, 12)):
    weight = torch.zeros(out_channels, channels, 3, 3, dtype=torch.float16)
    x, bias = torch.zeros(1, channels, 8, 8).half(), weight[:, 0, 0, 0].contiguous()
    image_convolution(x, weight, bias)
"""
NORMS = {
    "_channel_sums",
    "_moments",
    "_normalise",
    "_grad_sums",
    "_grad_means",
    "_grad_input",
    "_normalise_groups",
}
POINTWISE = {"_biased_sum", "_add_bias", "_layer_norm", "_interleave"}


@pytest.mark.parametrize(
    ("code", "kernels"),
    [(NORM, NORMS), (OTHERS + GATED + IMAGE, POINTWISE | {"_gated_linear", "_image_convolution"})],
    ids=["norm", "others"],
)
def test_every_kernel_compiles(code, kernels):
    found = compile_for_gpu(code)
    assert found.keys() == kernels
    assert min(found.values()) > 1


FAULTY = """
import triton
from triton import language as tl

@triton.jit
def faulty(x, n):
    place = tl.arange(0, 4)
    for i in range(0, n):
        place = i * 1.5
    tl.store(x, place)
"""


def test_kernel_that_does_not_compile_is_reported(tmp_path):
    """A kernel that changes a variable's type in a loop does not compile, but the interpreter accepts it."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    lines = ["import sys, torch", f"sys.path.append({str(tmp_path)!r})", "from faulty import faulty"]
    with pytest.raises(AssertionError, match="place"):
        compile_for_gpu("\n".join([*lines, "faulty[(1,)](torch.ones(4), 7)"]))
