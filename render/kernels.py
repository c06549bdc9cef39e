"""Whether Triton's kernels are taken for some tensors, or their references in torch."""

import torch
from torch import Tensor

from render.hash_grid import fused_encoder


def kernels_run(*values: Tensor) -> bool:
    """Whether all are float32 and on a CUDA device where the kernels of the hash encoding work."""
    device = values[0].device
    if device.type != "cuda" or any(value.dtype != torch.float32 for value in values):
        return False
    return fused_encoder(device) is not None
