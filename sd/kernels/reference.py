"""Reference implementations of the kernels in torch, and the class `Kernels` for one set of kernels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Kernels:
    """A set with one implementation of each function below."""

    name: str
    group_norm_and_skip: Callable[..., tuple[Tensor, Tensor]]
    group_norm_of_pair: Callable[..., Tensor]
    layer_norm: Callable[..., Tensor]
    gated_linear: Callable[[Tensor, Tensor, Tensor], Tensor]
    biased_sum: Callable[..., Tensor]
    add_bias: Callable[[Tensor, Tensor], Tensor]
    interleave: Callable[[Tensor, Tensor], Tensor]
    image_convolution: Callable[[Tensor, Tensor, Tensor], Tensor]


def group_norm(
    x: Float[Tensor, "B C H W"],
    weight: Float[Tensor, " C"],
    bias: Float[Tensor, " C"],
    groups: int,
    eps: float,
    silu: bool = True,
    shift: Float[Tensor, "#B C"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Apply group normalisation (arXiv 1803.08494) to x + shift, then SiLU if `silu` is true.

    The result is differentiable with respect to x only.
    """
    if shift is not None:
        x = x + shift.detach()[:, :, None, None]
    x = F.group_norm(x, groups, weight.detach(), bias.detach(), eps)
    return F.silu(x) if silu else x


def group_norm_and_skip(
    x: Float[Tensor, "B C H W"], *others: object
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
    """Return `group_norm(x, *others)` and x for a residual connection. Fast kernels add the gradients of both
    outputs in one pass.
    """
    return group_norm(x, *others), x


def group_norm_of_pair(
    x: Float[Tensor, "B C1 H W"],
    other: Float[Tensor, "B C2 H W"],
    weight: Float[Tensor, " C"],
    bias: Float[Tensor, " C"],
    groups: int,
    eps: float,
) -> Float[Tensor, "B C H W"]:
    """Concatenate the channels of two tensors, then apply group normalisation and SiLU. The result is not
    differentiable.
    """
    return group_norm(torch.cat([x, other], dim=1), weight, bias, groups, eps)


def layer_norm(
    x: Float[Tensor, "*M C"],
    weight: Float[Tensor, " C"],
    bias: Float[Tensor, " C"],
    eps: float,
    shift: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, "*M C"]:
    """Return the layer normalisation of x + shift (arXiv 1607.06450). The result is not differentiable."""
    return F.layer_norm(x if shift is None else x + shift, weight.shape, weight, bias, eps)


def gated_linear(
    x: Float[Tensor, "*M C"], weight: Float[Tensor, "I2 C"], bias: Float[Tensor, " I2"]
) -> Float[Tensor, "*M I"]:
    """Apply a linear layer, then multiply its even channels by GELU of its odd channels (GEGLU, arXiv
    2002.05202). The result is not differentiable.

    In the paper, the values are the first half of the channels, and the gates are the second half.
    `alternated` converts weights from this order.
    """
    value, gate = F.linear(x, weight, bias).unflatten(-1, (-1, 2)).unbind(-1)
    return value * F.gelu(gate)


def alternated(rows: Float[Tensor, "I2 ..."]) -> Float[Tensor, "I2 ..."]:
    """Return the rows 0, I, 1, I + 1, 2, …, where I is half of the number of rows."""
    return torch.stack(rows.chunk(2), dim=1).flatten(0, 1)


def biased_sum(
    x: Float[Tensor, "B C H W"],
    y: Float[Tensor, "B C H W"],
    bias: Float[Tensor, " C"],
    scale: float = 1.0,
    pad: bool = False,
) -> Float[Tensor, "B C H2 W2"]:
    """Return (x + y + bias) · scale. The result is differentiable with respect to x and y.

    pad: whether to add one row of zeros at the bottom and one column at the right.
    """
    total = (x + (y + bias.detach()[:, None, None])) * scale
    return F.pad(total, (0, 1, 0, 1)) if pad else total


def add_bias(x: Float[Tensor, "B C H W"], bias: Float[Tensor, " C"]) -> Float[Tensor, "B C H W"]:
    """Return x + bias. x may be overwritten with the sum. The result is not differentiable."""
    return x.add_(bias[:, None, None])


def interleave(x: Float[Tensor, "B C4 H1 W1"], bias: Float[Tensor, " C"]) -> Float[Tensor, "B C H2 W2"]:
    """Interleave the pixels of four images and add a bias. The result is not differentiable.

    x: four images of C channels and (H + 1) × (W + 1) pixels. Pixel (2i + a, 2j + b) of the result is pixel
    (i + a, j + b) of image 2a + b, for a and b in {0, 1}.
    """
    height, width = x.shape[2] - 1, x.shape[3] - 1
    y = x.new_empty(len(x), 2 * height, 2 * width, len(bias)).permute(0, 3, 1, 2)
    for number, image in enumerate(x.chunk(4, dim=1)):
        a, b = divmod(number, 2)
        y[:, :, a::2, b::2] = image[:, :, a : height + a, b : width + b] + bias[:, None, None]
    return y


def image_convolution(
    x: Float[Tensor, "B C H W"], weight: Float[Tensor, "D C 3 3"], bias: Float[Tensor, " D"]
) -> Float[Tensor, "B D H W"]:
    """Return the 3 × 3 convolution of an image with few channels, with padding 1. The result is not
    differentiable.
    """
    return F.conv2d(x, weight, bias, padding=1)


REFERENCE = Kernels(
    "reference",
    group_norm_and_skip,
    group_norm_of_pair,
    layer_norm,
    gated_linear,
    biased_sum,
    add_bias,
    interleave,
    image_convolution,
)
