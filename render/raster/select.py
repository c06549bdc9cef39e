"""Which rasteriser runs: Triton or nvdiffrast on CUDA, numba on the CPU, or the reference without these."""

import importlib
import logging
from functools import cache

import torch

from render.raster.interface import Rasteriser
from render.raster.reference import ReferenceRasteriser

log = logging.getLogger(__name__)

REQUIREMENTS = {
    "nvdiffrast": "needs --device cuda and nvdiffrast, installed from its sources with the CUDA toolkit",
    "triton": "needs --device cuda and triton, which comes with PyTorch's CUDA build for Linux",
    "numba": "needs --device cpu and `pip install numba`",
}
# What a package raises that is missing, or does not fit the others.
UNUSABLE = (ImportError, RuntimeError, OSError, AttributeError, SystemError)
# In this order: they take the same time, and Triton's kernels keep the outline's whole gradient, of which
# nvdiffrast's antialiasing keeps 2 % where triangles are as small as pixels (tests/benchmarks/raster.py).
AUTOMATIC = {"cuda": ("triton", "nvdiffrast")}
NAMES = ("auto", "nvdiffrast", "triton", "numba", "reference")


def choose_rasteriser(device: torch.device | str, preferred: str = "auto") -> Rasteriser:
    """The rasteriser for tensors on `device`.

    preferred: "auto" (the first of triton and nvdiffrast on CUDA, numba elsewhere, that runs here, otherwise
    the reference; the log says once which one, and why), or another of NAMES, which raises ValueError where
    it cannot run.
    """
    device = torch.device(device)
    if preferred not in NAMES:
        raise ValueError(f"rasteriser: {preferred!r} is unknown; allowed: {', '.join(NAMES)}")
    if preferred == "reference":
        return ReferenceRasteriser()
    names = (preferred,)
    if preferred == "auto":
        names = AUTOMATIC.get(device.type, ("numba",))
    failed = []
    for name in names:
        try:
            rasteriser = BUILDERS[name](device)
        except UNUSABLE as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if preferred != "auto":
                raise ValueError(f"rasteriser: {name!r} cannot run: {reason} ({REQUIREMENTS[name]})") from error
            failed.append(f"{name} cannot run: {reason}")
            continue
        if preferred == "auto":
            why = f"as {failed[0]}" if failed else "the first choice there"
            log_once(f"rasteriser: {name} on {device.type}, {why}")
        return rasteriser
    log_once(f"rasteriser: reference (slower) on {device.type}, as {' and '.join(failed)}")
    return ReferenceRasteriser()


def build_nvdiffrast(device: torch.device) -> Rasteriser:
    """RuntimeError, ImportError or OSError where it cannot run; its first use may compile it."""
    if device.type != "cuda":
        raise RuntimeError(f"it does not draw on {device.type}")
    module = importlib.import_module("render.raster.nvdiffrast_backend")
    return module.NvdiffrastRasteriser(device)


def build_triton(device: torch.device) -> Rasteriser:
    """RuntimeError or ImportError where it cannot run, after a small drawing; the first one ever compiles."""
    if device.type != "cuda":
        raise RuntimeError(f"it does not draw on {device.type}")
    module = importlib.import_module("render.raster.triton.backend")
    try:
        module.try_out(device)
    # A compiler, a driver, a cache folder: what is missing shows itself in errors of many kinds.
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    return module.TritonRasteriser()


def build_numba(device: torch.device) -> Rasteriser:
    """RuntimeError or ImportError where it cannot run."""
    if device.type != "cpu":
        raise RuntimeError(f"it does not draw on {device.type}")
    return importlib.import_module("render.raster.numba.backend").NumbaRasteriser()


BUILDERS = {"nvdiffrast": build_nvdiffrast, "triton": build_triton, "numba": build_numba}


@cache
def log_once(message: str) -> None:
    log.info(message)
