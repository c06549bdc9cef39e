"""Reference implementations of the kernels in torch, and the class `Kernels` for one set of kernels."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Kernels:
    """A set with one implementation of each function below."""

    name: str
    group_norm: Callable[..., Tensor]
    sum_norm: Callable[..., tuple[Tensor, Tensor]]
    geglu: Callable[[Tensor], Tensor]
    biased_sum: Callable[..., Tensor]
    add_bias: Callable[[Tensor, Tensor], Tensor]


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


def sum_norm(
    x: Float[Tensor, "*M C"],
    y: Float[Tensor, "*M C"] | None,
    weight: Float[Tensor, " C"],
    bias: Float[Tensor, " C"],
    eps: float,
) -> tuple[Float[Tensor, "*M C"], Float[Tensor, "*M C"]]:
    """Return the sum s = x + y (s = x if y is None) and the layer normalisation of s (arXiv 1607.06450).

    The results are not differentiable.
    """
    total = x if y is None else x + y
    return total, F.layer_norm(total, weight.shape, weight, bias, eps)


def geglu(x: Float[Tensor, "*M I2"]) -> Float[Tensor, "*M I"]:
    """Multiply the first half of the channels by GELU of the second half (arXiv 2002.05202)."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def biased_sum(
    x: Float[Tensor, "B C H W"], y: Float[Tensor, "B C H W"], bias: Float[Tensor, " C"], scale: float = 1.0
) -> Float[Tensor, "B C H W"]:
    """Return (x + y + bias) · scale. The result is differentiable with respect to x and y."""
    return (x + (y + bias.detach()[:, None, None])) * scale


def add_bias(x: Float[Tensor, "B C H W"], bias: Float[Tensor, " C"]) -> Float[Tensor, "B C H W"]:
    """Return x + bias. The sum is written into x if possible. It is not differentiable."""
    return x.add_(bias[:, None, None])


REFERENCE = Kernels("reference", group_norm, sum_norm, geglu, biased_sum, add_bias)
