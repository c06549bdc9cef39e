"""Which rasteriser runs: nvdiffrast on CUDA, numba on the CPU, the torch reference where these are missing."""

import importlib
import logging
from functools import lru_cache

import torch

from render.raster.contract import Rasteriser
from render.raster.reference import ReferenceRasteriser

log = logging.getLogger(__name__)

# Name -> (module that must import, module and class of ours, device type, what to do where it is missing).
FAST = {
    "nvdiffrast": (
        "nvdiffrast.torch",
        ("render.raster.nvdiffrast_cuda", "NvdiffrastRasteriser"),
        "cuda",
        "install it from its source repository with --no-build-isolation (needs the CUDA toolkit)",
    ),
    "numba": (
        "numba",
        ("render.raster.numba_cpu", "NumbaRasteriser"),
        "cpu",
        "run `pip install numba`",
    ),
}


def choose_rasteriser(device: torch.device, preferred: str = "auto") -> Rasteriser:
    """The rasteriser for tensors on `device`.

    preferred: "auto" (the fastest that runs here; a missing package means the reference, said in the log), or
    "nvdiffrast", "numba" or "reference", which raise ValueError where they cannot run.
    """
    device = torch.device(device)
    if preferred == "reference":
        return ReferenceRasteriser()
    if preferred == "auto":
        name = "nvdiffrast" if device.type == "cuda" else "numba"
        problem = why_not(name, device)
        _say_once(
            f"rasteriser: {name} on {device.type}"
            if problem is None
            else f"rasteriser: reference (slower) on {device.type}, because {problem}"
        )
        return ReferenceRasteriser() if problem else build(name)
    if preferred not in FAST:
        raise ValueError(f"rasteriser: {preferred!r} is unknown; allowed: auto, {', '.join(FAST)}, reference")
    problem = why_not(preferred, device)
    if problem:
        raise ValueError(f"rasteriser: {preferred!r} cannot run: {problem}")
    return build(preferred)


def why_not(name: str, device: torch.device) -> str | None:
    """Why this backend cannot run on `device`, with the remedy; None if it can."""
    package, _, device_type, remedy = FAST[name]
    if device.type != device_type:
        return f"{name} needs device {device_type}, not {device.type}"
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"{package} does not import ({reason}): {remedy}"
    return None


def build(name: str) -> Rasteriser:
    """A rasteriser of this backend, whose package is known to import."""
    module, class_name = FAST[name][1]
    return getattr(importlib.import_module(module), class_name)()


@lru_cache(maxsize=None)
def _say_once(message: str) -> None:
    log.info(message)
