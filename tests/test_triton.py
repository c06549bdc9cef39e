"""Test that Triton kernels run in the tests: compiled on a GPU, or interpreted on the CPU."""

import torch
import triton
from triton import language as tl


@triton.jit
def _double(source, target, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    tl.store(target + index, 2 * tl.load(source + index, mask=inside), mask=inside)


def test_kernel_runs(kernel_device):
    source = torch.arange(10.0, device=kernel_device)
    target = torch.zeros_like(source)
    _double[(2,)](source, target, 7, BLOCK=4)
    assert target.tolist() == [0, 2, 4, 6, 8, 10, 12, 0, 0, 0]
