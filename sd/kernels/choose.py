"""Which set of kernels the prior runs on."""

import logging

import torch

from sd.kernels.reference import REFERENCE, Kernels

logger = logging.getLogger(__name__)


def choose_kernels(device: torch.device) -> Kernels:
    """Triton's where they answer, otherwise torch's own, which is slower and says so."""
    if device.type != "cuda":
        return REFERENCE
    try:
        from sd.kernels import triton_norm, triton_pointwise

        kernels = Kernels(
            "triton", triton_norm.group_norm, triton_pointwise.geglu, triton_pointwise.biased_sum
        )
        try_out(kernels, device)
    except torch.OutOfMemoryError:
        raise
    # A compiler, a driver, a cache folder: what is missing shows itself in errors of many kinds.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        logger.warning(
            "the prior goes on with torch's own kernels, which are slower: Triton's do not run here (%s: %s)",
            type(error).__name__,
            reason,
        )
        return REFERENCE
    return kernels


def try_out(kernels: Kernels, device: torch.device) -> None:
    """Run every kernel once in half precision, both ways where there are two, against the reference.

    Raises:
        ArithmeticError: one answers something else.
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
        answers.append([total.detach(), slope, tried.geglu(x.detach().reshape(-1, 16))])
    for name, found, expected in zip(("group_norm", "its gradient", "geglu"), *answers, strict=True):
        if not torch.allclose(found.float(), expected.float(), atol=0.01):
            raise ArithmeticError(f"{name} answers something else")
