"""Selection of the rasteriser: Triton or nvdiffrast on CUDA, numba on the CPU, otherwise the reference."""

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
# Exceptions of a package that is missing or incompatible with other packages.
UNUSABLE = (ImportError, RuntimeError, OSError, AttributeError, SystemError)
# In order of preference. Both have the same speed. If triangles are as small as pixels, nvdiffrast's
# antialiasing keeps 2 % of the outline gradient and Triton keeps all of it (tests/benchmarks/raster.py).
AUTOMATIC = {"cuda": ("triton", "nvdiffrast")}
NAMES = ("auto", "nvdiffrast", "triton", "numba", "reference")


def choose_rasteriser(device: torch.device | str, preferred: str = "auto") -> Rasteriser:
    """The rasteriser for tensors on `device`.

    preferred: one of NAMES. "auto" takes the first usable of triton and nvdiffrast on CUDA, numba on the CPU,
    otherwise the reference. The choice and its reason are logged once.
    Raises ValueError if a rasteriser other than "auto" is not usable.
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
                raise ValueError(
                    f"rasteriser: {name!r} cannot run: {reason} ({REQUIREMENTS[name]})"
                ) from error
            failed.append(f"{name} cannot run: {reason}")
            continue
        if preferred == "auto":
            why = f"as {failed[0]}" if failed else "the first choice"
            log_once(f"rasteriser: {name} on {device.type}, {why}")
        return rasteriser
    log_once(f"rasteriser: reference (slower) on {device.type}, as {' and '.join(failed)}")
    return ReferenceRasteriser()


def build_nvdiffrast(device: torch.device) -> Rasteriser:
    """The nvdiffrast rasteriser. Raises RuntimeError, ImportError or OSError if it is not usable.

    nvdiffrast may compile its extension on first use.
    """
    if device.type != "cuda":
        raise RuntimeError(f"it does not support {device.type}")
    module = importlib.import_module("render.raster.nvdiffrast_backend")
    return module.NvdiffrastRasteriser(device)


def build_triton(device: torch.device) -> Rasteriser:
    """The Triton rasteriser. Raises RuntimeError or ImportError if it is not usable.

    Renders a small test image, which compiles the kernels on first use.
    """
    if device.type != "cuda":
        raise RuntimeError(f"it does not support {device.type}")
    module = importlib.import_module("render.raster.triton.backend")
    try:
        module.try_out(device)
    # A missing compiler, driver or cache folder raises errors of many types.
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    return module.TritonRasteriser()


def build_numba(device: torch.device) -> Rasteriser:
    """The numba rasteriser. Raises RuntimeError or ImportError if it is not usable."""
    if device.type != "cpu":
        raise RuntimeError(f"it does not support {device.type}")
    return importlib.import_module("render.raster.numba.backend").NumbaRasteriser()


BUILDERS = {"nvdiffrast": build_nvdiffrast, "triton": build_triton, "numba": build_numba}


@cache
def log_once(message: str) -> None:
    log.info(message)
