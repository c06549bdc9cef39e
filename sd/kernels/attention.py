"""Attention by the fastest of torch's kernels for a shape."""

from functools import partial

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sd.kernels.fastest import Fastest

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def attention_with(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """See `sd.kernels.reference.attention`. Raises RuntimeError for unsupported inputs."""
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def fastest_attention() -> Fastest:
    """Return a function that computes `sd.kernels.reference.attention`."""
    named = {name: partial(attention_with, backend) for name, backend in BACKENDS.items()}
    return Fastest("attention", {"torch's choice": F.scaled_dot_product_attention, **named})
