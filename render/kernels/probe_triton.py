"""A minimal Triton kernel that tests whether Triton compiles and runs on a device."""

import torch
import triton
import triton.language as tl

from render.raster.triton.launch_config import on_device_of


@triton.jit
def _double(source, target, count, BLOCK: tl.constexpr):
    row = tl.arange(0, BLOCK)
    mask = row < count
    tl.store(target + row, 2 * tl.load(source + row, mask=mask), mask=mask)


def run_probe(device: torch.device) -> None:
    """Run a small kernel on the device. Raises ArithmeticError if the result of the kernel is wrong."""
    source = torch.arange(1.0, 9.0, device=device)
    target = torch.zeros_like(source)
    # The current device belongs to the thread. In a new thread, it is the first GPU.
    with on_device_of(source):
        _double[(1,)](source, target, len(source), BLOCK=16)
    if not torch.equal(target, 2 * source):
        raise ArithmeticError("the result of a test kernel is wrong")
