"""Test whether Triton kernels and numba functions can run."""

import importlib
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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


@contextmanager
def triton_started(device: torch.device) -> Iterator[None]:
    """On a CUDA device, run `triton_works` in a thread during the block, so that later calls return at once.

    The first call takes 1 s, because it starts CUDA and because Triton hashes its library of 460 MB. Most of
    this time is spent without the interpreter lock. The block must not use Triton. An error of the test is
    raised by the next call of `triton_works`.
    """
    if device.type != "cuda":
        yield
        return
    interval = sys.getswitchinterval()
    # Triton hashes in parts of 1 MB and takes the interpreter lock for each part. With the default of 5 ms,
    # it would wait for the lock for seconds.
    sys.setswitchinterval(1e-4)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="triton") as pool:
            pool.submit(triton_works, device)
            yield
    finally:
        sys.setswitchinterval(interval)


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
