"""Selection of the hash encoding: Triton on CUDA, numba on the CPU, otherwise the reference in torch.

All implementations have the interface `Encoder` in reference.py. The implementation is selected only once for
each device and dtype of a table of features. The rasteriser and the prior's kernels are selected in the same
way.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch

from render.encoding.reference import REFERENCE, Encoder
from render.kernels.available import triton_works

logger = logging.getLogger(__name__)

# The encoders to try on each device type, best first. If none is usable, the reference is used.
AUTOMATIC = {"cuda": ("triton",), "cpu": ("numba",)}
# A key of BUILDERS that replaces the automatic choice. Only tests set it.
OVERRIDE: str | None = None


def choose_encoder(device: torch.device, dtype: torch.dtype, features: int) -> Encoder:
    """Return the encoder for a table on `device`.

    If no faster implementation is usable, the reference is returned and the reason is logged once.

    features: number of features per level. Triton supports only powers of two. Only the reference supports a
    dtype other than float32.
    """
    if OVERRIDE is not None:
        return BUILDERS[OVERRIDE](device)
    for name in AUTOMATIC.get(device.type, ()):
        if dtype != torch.float32 or (name == "triton" and features & (features - 1)):
            continue
        try:
            return BUILDERS[name](device)
        except torch.OutOfMemoryError:
            raise
        # numba raises errors of many types if it does not support the installed version of NumPy.
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            fix = f"pip install {name}"
            _warn_once(f"hash encoding: using torch (slower), because {name} cannot run: {reason}; {fix}")
    return REFERENCE


def build_triton(device: torch.device) -> Encoder:
    """Return the Triton kernels. Raises RuntimeError if Triton does not run on the device."""
    if not triton_works(device):
        raise RuntimeError(f"its test kernel fails on {device}")
    from render.encoding import hash_grid_triton

    return Encoder("triton", hash_grid_triton.encode, hash_grid_triton.encode_backward)


def build_numba(device: torch.device) -> Encoder:
    """Return the numba functions. Raises an error if numba is missing or unusable."""
    from render.encoding import hash_grid_numba

    return Encoder("numba", hash_grid_numba.encode, hash_grid_numba.encode_backward)


def build_reference(device: torch.device) -> Encoder:
    """Return the reference, which runs on any device."""
    return REFERENCE


BUILDERS: dict[str, Callable[[torch.device], Encoder]] = {
    "triton": build_triton,
    "numba": build_numba,
    "reference": build_reference,
}


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)
