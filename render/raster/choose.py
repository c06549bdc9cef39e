"""Which rasteriser runs: nvdiffrast on CUDA, numba on the CPU, the reference where these are missing."""

import importlib
import logging
from functools import cache

import torch

from render.raster.contract import Rasteriser
from render.raster.reference import ReferenceRasteriser

log = logging.getLogger(__name__)

REMEDY = {
    "nvdiffrast": "needs --device cuda and nvdiffrast, installed from its sources with the CUDA toolkit",
    "numba": "needs --device cpu and `pip install numba`",
}
# What a package raises that is missing, or does not fit the others.
BROKEN = (ImportError, RuntimeError, OSError, AttributeError, SystemError)
NAMES = ("auto", "nvdiffrast", "numba", "reference")


def choose_rasteriser(device: torch.device | str, preferred: str = "auto") -> Rasteriser:
    """The rasteriser for tensors on `device`.

    preferred: "auto" (the fastest that runs here; the log says once which one, and why) or "nvdiffrast",
    "numba", "reference", which raise ValueError where they cannot run.
    """
    device = torch.device(device)
    if preferred not in NAMES:
        raise ValueError(f"rasteriser: {preferred!r} is unknown; allowed: {', '.join(NAMES)}")
    if preferred == "reference":
        return ReferenceRasteriser()
    name = preferred if preferred != "auto" else "nvdiffrast" if device.type == "cuda" else "numba"
    try:
        rasteriser = build_nvdiffrast(device) if name == "nvdiffrast" else build_numba(device)
    except BROKEN as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if preferred != "auto":
            raise ValueError(f"rasteriser: {name!r} cannot run: {reason} ({REMEDY[name]})") from error
        log_once(f"rasteriser: reference (slower) on {device.type}, as {name} cannot run: {reason}")
        return ReferenceRasteriser()
    if preferred == "auto":
        log_once(f"rasteriser: {name} on {device.type}, the fastest here")
    return rasteriser


def build_nvdiffrast(device: torch.device) -> Rasteriser:
    """RuntimeError, ImportError or OSError where it cannot run; its first use may compile it."""
    if device.type != "cuda":
        raise RuntimeError(f"it does not draw on {device.type}")
    module = importlib.import_module("render.raster.nvdiffrast_cuda")
    return module.NvdiffrastRasteriser(device)


def build_numba(device: torch.device) -> Rasteriser:
    """RuntimeError or ImportError where it cannot run."""
    if device.type != "cpu":
        raise RuntimeError(f"it does not draw on {device.type}")
    return importlib.import_module("render.raster.numba_cpu").NumbaRasteriser()


@cache
def log_once(message: str) -> None:
    log.info(message)
