"""Test whether Triton kernels and numba functions can run."""

import importlib
import logging
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def triton_available(*values: Tensor) -> bool:
    """Return whether all tensors are float32 and the first is on a CUDA device on which Triton works."""
    return all(value.dtype == torch.float32 for value in values) and triton_runs_on(values[0].device)


def triton_runs_on(device: torch.device) -> bool:
    """Return whether the device is a CUDA device on which Triton works."""
    return device.type == "cuda" and triton_works(device)


@cache
def triton_works(device: torch.device) -> bool:
    """Return whether Triton can compile and run a kernel on this CUDA device. If not, the reason is logged
    once.
    """
    try:
        from render.kernels import probe_triton

        probe_triton.run_probe(device)
    except torch.OutOfMemoryError:
        raise
    # All errors are caught, because a missing compiler, driver or cache folder raises errors of many types.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        logger.warning("Triton cannot run (%s); torch's slower kernels are used; pip install triton", reason)
        return False
    return True


@cache
def numba_module(name: str, consequence: str) -> ModuleType | None:
    """Import a module of numba functions. Return None if numba is missing or unusable.

    consequence: what happens without the module. If the module is unusable, this text and the reason are
    logged once.
    """
    try:
        return importlib.import_module(name)
    # numba raises errors of many types if it does not support the installed version of NumPy.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        logger.warning("%s, because numba cannot run: %s; pip install numba", consequence, reason)
        return None
