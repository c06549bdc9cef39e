"""Select the prior's kernels: Triton on CUDA, otherwise the reference in torch.

`Kernels` in reference.py defines the functions. The kernels are selected once, when the prior is built. The
rasteriser and the hash encoding are selected in the same way.
"""

import logging
from collections.abc import Callable

import torch

from sd.kernels.reference import REFERENCE, Kernels

logger = logging.getLogger(__name__)

# Keys of BUILDERS for each device type, in order of preference. If none is usable, the reference is used.
AUTOMATIC = {"cuda": ("triton",)}
# Tests set OVERRIDE to a key of BUILDERS, which replaces the automatic choice.
OVERRIDE: str | None = None


def choose_kernels(device: torch.device) -> Kernels:
    """Return the kernels for tensors on `device`. A warning is logged if the faster kernels are not usable.

    Raises:
        torch.OutOfMemoryError: if the GPU has too little free memory for the test of the kernels.
        Exception: any error of the builder, if OVERRIDE is set.
    """
    if OVERRIDE is not None:
        return BUILDERS[OVERRIDE](device)
    for name in AUTOMATIC.get(device.type, ()):
        try:
            return BUILDERS[name](device)
        except torch.OutOfMemoryError:
            raise
        # All types are caught, because a missing compiler, driver or cache folder raises errors of many
        # types.
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning("prior: using torch's kernels (slower), because %s cannot run: %s", name, reason)
    return REFERENCE


def build_triton(device: torch.device) -> Kernels:
    """Return Triton's kernels after a test on the device.

    Raises:
        ImportError: if Triton is not installed.
        ArithmeticError: if a result of the kernels is wrong.
        Exception: any error of Triton's compiler.
    """
    kernels = triton_kernels()
    self_test(kernels, device)
    return kernels


def build_reference(device: torch.device) -> Kernels:
    """Return the reference, which runs on any device."""
    return REFERENCE


BUILDERS: dict[str, Callable[[torch.device], Kernels]] = {
    "triton": build_triton,
    "reference": build_reference,
}


def triton_kernels() -> Kernels:
    """Return Triton's kernels. Raises ImportError if Triton is not installed."""
    from sd.kernels import (
        gated_linear_triton,
        group_norm_triton,
        image_convolution_triton,
        pointwise_triton,
    )

    return Kernels(
        "triton",
        group_norm_triton.group_norm_and_skip,
        group_norm_triton.group_norm_of_pair,
        pointwise_triton.layer_norm,
        gated_linear_triton.gated_linear,
        pointwise_triton.biased_sum,
        pointwise_triton.add_bias,
        pointwise_triton.interleave,
        image_convolution_triton.image_convolution,
    )


def self_test(kernels: Kernels, device: torch.device) -> None:
    """Run every kernel once in half precision and compare values and gradients with the reference.

    The reference runs on the CPU, because its operations would be loaded onto the GPU only for this test.

    Raises:
        ArithmeticError: if the result of a kernel differs from the reference.
    """
    results = []
    for tested, dtype, place in ((kernels, torch.float16, device), (REFERENCE, torch.float32, "cpu")):
        x = torch.linspace(-2, 2, 2 * 16 * 9, device=place, dtype=dtype).reshape(2, 16, 3, 3)
        one = torch.ones(16, device=place, dtype=dtype)
        with torch.enable_grad():
            x.requires_grad_()
            normalised, skip = tested.group_norm_and_skip(x, one, one, 4, 1e-5, True, one[None])
            total = tested.biased_sum(skip, normalised, one)
            # The gradient of a sum is used, because a call with the gradient of `total` would import sympy.
            (grad_x,) = torch.autograd.grad(total.sum(), x)
        # These rows have a large standard deviation, compared with which the rounding errors of half
        # precision are small.
        rows = x.detach().reshape(16, -1).T.contiguous()
        # The numbers of channels are multiples of the tile sizes, as in a denoiser, so the test compiles the
        # same kernel as a denoiser.
        tokens = torch.linspace(-2, 2, 9 * 64, device=place, dtype=dtype).reshape(9, 64)
        weight = torch.linspace(-0.02, 0.02, 256 * 64, device=place, dtype=dtype).reshape(256, 64)
        image, taps = x.detach()[:, :3], 5 * weight[:16, :27].reshape(16, 3, 3, 3)
        results.append(
            {
                "group_norm": total.detach(),
                "group_norm without gradient": tested.group_norm_and_skip(x.detach(), one, one, 4, 1e-5)[0],
                "the gradient of group_norm": grad_x,
                "group_norm_of_pair": tested.group_norm_of_pair(
                    x.detach(),
                    -x.detach()[:, :8],
                    torch.cat([one, one[:8]]),
                    torch.cat([one, one[:8]]),
                    3,
                    1e-5,
                ),
                "layer_norm": tested.layer_norm(rows, one, one, 1e-5, one),
                "gated_linear": tested.gated_linear(tokens, weight, weight[:, 0].contiguous()),
                "image_convolution": tested.image_convolution(image, taps, one),
                "interleave": tested.interleave(x.detach(), one[:4]),
                "add_bias": tested.add_bias(x.detach().clone(), one),
            }
        )
    found, expected = results
    for name, value in found.items():
        if not torch.allclose(value.float().cpu(), expected[name].float(), atol=0.01):
            raise ArithmeticError(f"{name} of the {kernels.name} kernels differs from the reference")
