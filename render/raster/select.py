"""Selection of the rasteriser: Triton or nvdiffrast on CUDA, numba on the CPU, otherwise the reference.

All rasterisers have the interface `Rasteriser` in interface.py. The rasteriser is selected once, while the
run is built. The hash encoding and the prior's kernels are selected in the same way.
"""

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Literal, get_args

import torch

from render.raster.interface import Rasteriser
from render.raster.reference import ReferenceRasteriser

logger = logging.getLogger(__name__)

REQUIREMENTS = {
    "nvdiffrast": "needs --device cuda and nvdiffrast, installed from its sources with the CUDA toolkit",
    "triton": "needs --device cuda and triton, which comes with PyTorch's CUDA build for Linux",
    "numba": "needs --device cpu and `pip install numba`",
}
# Exceptions that are raised if a package is missing or incompatible with other packages.
UNUSABLE = (ImportError, RuntimeError, OSError, AttributeError, SystemError)
# The rasterisers to try on each device type, best first. If none is usable, the reference is used. Triton and
# nvdiffrast have the same speed. Triton is preferred because for triangles as small as pixels, nvdiffrast's
# antialiasing gives 2 % of the outline gradient, while Triton's gives all of it (tests/benchmarks/raster.py).
AUTOMATIC = {"cuda": ("triton", "nvdiffrast"), "cpu": ("numba",)}
# A key of BUILDERS that replaces the choice of the caller. Only tests set it.
OVERRIDE: str | None = None
RasteriserName = Literal["auto", "nvdiffrast", "triton", "numba", "reference"]
NAMES = get_args(RasteriserName)


def choose_rasteriser(device: torch.device | str, preferred: str = "auto") -> Rasteriser:
    """Return the rasteriser for tensors on `device`.

    preferred: one of NAMES. "auto" selects the first usable rasteriser of AUTOMATIC, or the reference if none
    is usable. The automatic choice and its reason are logged once.

    Raises ValueError if `preferred` is unknown, or if it names a rasteriser that is not usable.
    """
    device = torch.device(device)
    if preferred not in NAMES:
        raise ValueError(f"rasteriser: {preferred!r} is unknown; allowed: {', '.join(NAMES)}")
    name = OVERRIDE or preferred
    if name != "auto":
        try:
            return BUILDERS[name](device)
        except UNUSABLE as error:
            reason = f"{_first_line(error)} ({REQUIREMENTS[name]})"
            raise ValueError(f"rasteriser: {name!r} cannot run: {reason}") from error
    failed = []
    for name in AUTOMATIC.get(device.type, ()):
        try:
            rasteriser = BUILDERS[name](device)
        except UNUSABLE as error:
            failed.append(f"{name} cannot run: {_first_line(error)}")
            continue
        _log_once(
            f"rasteriser: {name} on {device.type}, {f'as {failed[0]}' if failed else 'the first choice'}"
        )
        return rasteriser
    reason = " and ".join(failed) or f"no other rasteriser supports {device.type}"
    _log_once(f"rasteriser: reference (slower) on {device.type}, as {reason}")
    return ReferenceRasteriser()


def build_nvdiffrast(device: torch.device) -> Rasteriser:
    """Return the nvdiffrast rasteriser. Raises RuntimeError, ImportError or OSError if it is not usable.

    nvdiffrast may compile its extension on first use.
    """
    if device.type != "cuda":
        raise RuntimeError(f"it does not support {device.type}")
    module = importlib.import_module("render.raster.nvdiffrast_backend")
    return module.NvdiffrastRasteriser(device)


def build_triton(device: torch.device) -> Rasteriser:
    """Return the Triton rasteriser. Raises RuntimeError or ImportError if it is not usable.

    The function renders a small test image, which compiles the kernels if the cache does not contain them.
    """
    if device.type != "cuda":
        raise RuntimeError(f"it does not support {device.type}")
    module = importlib.import_module("render.raster.triton.backend")
    try:
        module.self_test(device)
    # All errors are caught, because a missing compiler, driver or cache folder raises errors of many types.
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    return module.TritonRasteriser()


def build_numba(device: torch.device) -> Rasteriser:
    """Return the numba rasteriser. Raises RuntimeError or ImportError if it is not usable."""
    if device.type != "cpu":
        raise RuntimeError(f"it does not support {device.type}")
    return importlib.import_module("render.raster.numba.backend").NumbaRasteriser()


def build_reference(device: torch.device) -> Rasteriser:
    """Return the reference, which runs on any device."""
    return ReferenceRasteriser()


BUILDERS: dict[str, Callable[[torch.device], Rasteriser]] = {
    "nvdiffrast": build_nvdiffrast,
    "triton": build_triton,
    "numba": build_numba,
    "reference": build_reference,
}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


@cache
def _log_once(message: str) -> None:
    logger.info(message)
