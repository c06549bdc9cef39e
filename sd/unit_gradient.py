"""Scaling of gradients to about unit norm before a function's backward pass, and reverse scaling after it.

Half precision has only 5 bits of exponent, so in the layers of an encoder, a small gradient underflows to 0
and a large gradient overflows. Each sample of a batch has its own factor. The factor is a power of two, so
the scaling is exact.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def unit_gradient(
    function: Callable[[Float[Tensor, "B ..."]], Float[Tensor, "B ..."]], x: Float[Tensor, "B ..."]
) -> Float[Tensor, "B ..."]:
    """Return function(x).

    In the backward pass, the gradient of each sample on the output is divided by a power of two so that its
    norm is in [0.5, 1). The gradient on x is multiplied by the same number. x and the result are float32.

    A gradient that is 0 or not finite is not scaled.
    """
    factors: list[Tensor] = []
    return _Scale.apply(function(_Unscale.apply(x, factors)), factors)


class _Scale(torch.autograd.Function):
    """The identity function that is applied to the output. The backward pass stores the factors and divides
    the gradient by them.
    """

    @staticmethod
    def forward(ctx, y, factors):
        ctx.factors = factors
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        # float64 is used, because in float64 the sum of squares of float32 numbers cannot overflow.
        norm = torch.linalg.vector_norm(grad.flatten(1), dim=1, dtype=torch.float64)
        exponent = torch.where((norm > 0) & norm.isfinite(), torch.frexp(norm)[1], 0)
        exponent = exponent.clamp(-120, 120).view(-1, *[1] * (grad.ndim - 1))
        ctx.factors[:] = [exponent]
        return torch.ldexp(grad, -exponent), None


class _Unscale(torch.autograd.Function):
    """The identity function that is applied to the input. The backward pass multiplies the gradient by the
    factors."""

    @staticmethod
    def forward(ctx, x, factors):
        ctx.factors = factors
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (exponent,) = ctx.factors
        return torch.ldexp(grad, exponent), None
