"""Selection of the prior's kernels: Triton or torch."""

import logging

import torch

from sd.kernels.reference import REFERENCE, Kernels

logger = logging.getLogger(__name__)


def choose_kernels(device: torch.device) -> Kernels:
    """Triton's kernels if they work on the device, else torch's, which are slower, with a warning on CUDA."""
    if device.type != "cuda":
        return REFERENCE
    try:
        kernels = triton_kernels()
        try_out(kernels, device)
    except torch.OutOfMemoryError:
        raise
    # A missing compiler, driver or cache folder raises errors of many types.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        logger.warning(
            "the prior goes on with torch's own kernels, which are slower: Triton's do not run here (%s: %s)",
            type(error).__name__,
            reason,
        )
        return REFERENCE
    return kernels


def triton_kernels() -> Kernels:
    """Triton's kernels. Raises ImportError if Triton is not installed."""
    from sd.kernels import group_norm_triton, pointwise_triton

    return Kernels(
        "triton",
        group_norm_triton.group_norm,
        pointwise_triton.sum_norm,
        pointwise_triton.geglu,
        pointwise_triton.biased_sum,
        pointwise_triton.add_bias,
    )


def try_out(kernels: Kernels, device: torch.device) -> None:
    """Run every kernel once in half precision and compare values and gradients with the reference.

    Raises:
        ArithmeticError: the result of a kernel differs from the reference.
    """
    answers = []
    for tried, dtype in ((kernels, torch.float16), (REFERENCE, torch.float32)):
        x = torch.linspace(-2, 2, 2 * 16 * 9, device=device, dtype=dtype).reshape(2, 16, 3, 3)
        one = torch.ones(16, device=device, dtype=dtype)
        with torch.enable_grad():
            x.requires_grad_()
            value = tried.group_norm(x, one, one, 4, 1e-5, True, one[None])
            total = tried.biased_sum(x, value, one)
            (slope,) = torch.autograd.grad(total, x, torch.ones_like(total))
        # Rows with a large standard deviation, compared with which half precision's rounding is small.
        rows = x.detach().reshape(16, -1).T
        biased = tried.add_bias(x.detach().clone(), one)
        answers.append(
            [total.detach(), slope, tried.geglu(rows), *tried.sum_norm(rows, rows, one, one, 1e-5), biased]
        )
    names = ("group_norm", "its gradient", "geglu", "sum_norm", "sum_norm", "add_bias")
    for name, found, expected in zip(names, *answers, strict=True):
        if not torch.allclose(found.float(), expected.float(), atol=0.01):
            raise ArithmeticError(f"{name} answers something else")
