"""`python3 train.py --check`: print a table of available and missing requirements, with instructions.

Packages are imported inside try blocks, so a missing or broken package produces a row and not a traceback.
The check does not use the network and writes no files.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import os
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.console import setup_logging

OPTION = "--check"
OK, NOTE, MISSING = "ok", "note", "MISSING"
SUPPORTED = (3, 11), (3, 13)
PRIOR_NAME = "data/tiny-sd"
PRIOR = Path(__file__).resolve().parents[1] / PRIOR_NAME
# Disk space in bytes that the demo needs for its output.
DEMO_DISK = 0.3e9

# Distributions whose module has another name or loads its parts only when they are accessed. The value is the
# module to import, or "module:attribute" to also load a part of the module.
MODULES = {
    "diffusers": "diffusers:UNet2DConditionModel",
    "transformers": "transformers:CLIPTextModel",
    "libigl": "igl",
    "imageio-ffmpeg": "imageio_ffmpeg",
    "pillow": "PIL.Image",
}
# Effect of a missing package on the program. The demo needs all packages that are not listed here.
OPTIONAL = {
    "numba": "the CPU uses a slower rasteriser and hash encoding in torch",
    "trimesh": "OBJ is the only readable mesh format",
    "libigl": "start shapes from mesh files, export_faces and min_component_area are not available",
    "OpenEXR": "environment maps in .exr are not readable",
    "imageio-ffmpeg": "videos are not written",
    "tokenizers": "data.make_tiny_sd is not available",
}
UNWRAPPERS = ("xatlas", "uvunwrap")


@dataclass(frozen=True)
class Row:
    """A row of the table. status: OK, NOTE or MISSING. fix: instruction for the user, or ""."""

    group: str
    name: str
    status: str
    found: str
    fix: str = ""


def main(argv: Sequence[str]) -> int:
    """Print the table and check the configs in argv. Return 0 if the configs and the demo can run, else 2."""
    setup_logging()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = list(survey([word for word in argv if word != OPTION]))
    write_table(rows)
    return 2 if any(row.status == MISSING for row in rows) else 0


def survey(argv: Sequence[str] = ()) -> Iterator[Row]:
    """Yield all rows in the order of the table. argv: the options of the command line without --check."""
    yield check_python()
    yield check_disk(Path("out"))
    yield from check_packages(read_requirements())
    yield check_gpu()
    yield from check_rasterisers()
    yield check_prior()
    yield from check_model("stable-diffusion-2-1-base", "weights")
    if argv:
        yield from check_configs(argv)


def check_python() -> Row:
    version = ".".join(map(str, sys.version_info[:3]))
    oldest, newest = (".".join(map(str, bound)) for bound in SUPPORTED)
    if SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        return Row("system", "Python", OK, version)
    status = MISSING if sys.version_info[:2] < SUPPORTED[0] else NOTE
    return Row("system", "Python", status, version, f"use Python {oldest} to {newest}")


def check_disk(folder: Path) -> Row:
    """Check free space and write permission of the nearest existing parent of `folder`."""
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    name = f"disk at {folder}/"
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return Row("system", name, MISSING, f"{parent} is not writable", "use a writable folder")
    free = shutil.disk_usage(parent).free
    if free < DEMO_DISK:
        return Row("system", name, MISSING, f"{free / 1e9:.1f} GB free", "free some disk space")
    return Row("system", name, OK, f"{free / 1e9:.1f} GB free")


def read_requirements(path: Path | None = None) -> dict[str, str]:
    """Return a dict from each distribution in requirements.txt to its line: {"numba": "numba==0.68.1"}."""
    path = path or Path(__file__).parents[1] / "requirements.txt"
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {re.split(r"[=<>!~\[; ]", line)[0]: line for line in lines if line}


def check_packages(requirements: dict[str, str]) -> Iterator[Row]:
    """Yield a row for each requirement, and a row if the placeholder package kaolin 0.1 is installed."""
    faults = {name: import_fault(MODULES.get(name, name)) for name in requirements}
    effects = dict(OPTIONAL)
    for name, other in zip(UNWRAPPERS, UNWRAPPERS[::-1], strict=True):
        if faults.get(other) is None:
            effects[name] = f"{other} unwraps all meshes"
    for name, line in requirements.items():
        if faults[name] is None:
            yield Row("packages", name, OK, _version_text(name, line))
        elif name in effects:
            yield Row("packages", name, NOTE, f"{faults[name]}; {effects[name]}", f"pip install '{line}'")
        else:
            yield Row("packages", name, MISSING, faults[name], f"pip install '{line}'")
    if _version("kaolin") == "0.1":
        found = "0.1 is an empty placeholder on PyPI, not NVIDIA's library; the program does not need it"
        yield Row("packages", "kaolin", NOTE, found, "pip uninstall kaolin")


def import_fault(name: str) -> str | None:
    """Return the reason why "module" or "module:attribute" cannot be imported, or None if it can."""
    module, _, attribute = name.partition(":")
    try:
        imported = importlib.import_module(module)
        if attribute:
            getattr(imported, attribute)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == module.partition(".")[0] else f"broken: {_one_line(error)}"
    except Exception as error:  # A broken package can raise any exception.
        return f"broken: {_one_line(error)}"
    return None


def check_gpu() -> Row:
    """Check which CUDA devices torch can use."""
    try:
        torch = importlib.import_module("torch")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    except Exception as error:  # A broken torch or driver can raise any exception.
        return Row("GPU", "CUDA", NOTE, _one_line(error), "repair torch, then the driver")
    if count:
        return Row("GPU", "CUDA", OK, f"{names}, CUDA {torch.version.cuda}")
    reason = "no GPU found" if torch.version.cuda else "this build of torch has no CUDA support"
    found = f"{reason}; the demo runs without it, Stable Diffusion needs it"
    return Row(
        "GPU", "CUDA", NOTE, found, "with an NVIDIA GPU, install its driver and the CUDA build of torch"
    )


def check_rasterisers() -> Iterator[Row]:
    """Build each rasteriser as a run does, and yield its row of the table.

    On CUDA, compiling nvdiffrast may take a minute.
    """
    try:
        from render.raster import select

        torch = importlib.import_module("torch")
        on_cuda = torch.cuda.is_available()
    except Exception as error:  # A broken package can raise any exception.
        yield Row("rasterisers", "all", NOTE, _one_line(error), "repair the packages first")
        return
    for name, requirement in select.REQUIREMENTS.items():
        device = "cpu" if name == "numba" else "cuda"
        if device == "cuda" and not on_cuda:
            yield Row("rasterisers", name, OK, "not needed without CUDA")
            continue
        try:
            select.BUILDERS[name](torch.device(device))
            yield Row("rasterisers", name, OK, f"runs on {device}")
        except Exception as error:
            yield Row("rasterisers", name, NOTE, _one_line(error), requirement)


def check_prior() -> Row:
    """Check that the embedded prior is complete."""
    fix = f"git checkout {PRIOR_NAME}"
    if not PRIOR.is_dir():
        return Row("weights", PRIOR_NAME, MISSING, f"no such folder: {PRIOR}", fix)
    fault = (_local_places(str(PRIOR)) or {}).get(str(PRIOR))
    size = sum(file.stat().st_size for file in PRIOR.rglob("*.safetensors"))
    if fault or not size:
        return Row("weights", PRIOR_NAME, MISSING, fault or "no weights", fix)
    return Row("weights", PRIOR_NAME, OK, f"embedded prior, {size / 1e6:.1f} MB")


def check_model(name: str, group: str) -> Iterator[Row]:
    """Yield a row for each place that may contain the model `name`, up to the first complete copy."""
    places = _local_places(name)
    if places is None:
        yield Row(group, name, NOTE, "not checked", "repair the packages first")
        return
    for place, fault in places.items():
        yield Row(group, place, NOTE if fault else OK, fault or "complete; a run uses this one")
        if fault is None:
            return
    fix = "--sd_model FOLDER or OWNER/NAME, see sd/README.md, Weights"
    yield Row(group, name, NOTE, "not on this machine; the demo does not need it", fix)


def check_configs(argv: Sequence[str]) -> Iterator[Row]:
    """Check the configs of a command line as in a run, but without downloads."""
    try:
        from configs.cli import load_configs
        from sd.loading.hub import DEFAULT_MODEL
        from training.resume import latest_checkpoint
    except Exception as error:  # A broken package can raise any exception.
        yield Row(
            "configs", "all", MISSING, f"cannot be read: {_one_line(error)}", "repair the packages first"
        )
        return
    try:
        configs = load_configs(argv)
    except (ValueError, OSError) as error:
        yield Row("configs", "command line", MISSING, _one_line(error), "change what the line names")
        return
    for config in configs:
        out = config.run.output_folder
        name = config.run.out_dir
        try:
            checkpoint = latest_checkpoint(config)
            state = f"resumes after step {checkpoint.step}" if checkpoint else "starts at step 0"
            yield Row("configs", name, OK, f"{config.run.mode}, {config.guidance.text!r}, {state}")
        except (ValueError, OSError) as error:
            yield Row("configs", name, MISSING, _one_line(error), f"--out_dir {free_out_dir(argv)}")
        yield from _device_rows(name, config.run.device)
        yield check_disk(out)
        for name in filter(None, (config.guidance.sd_model, config.guidance.second_sd_model)):
            if name not in (DEFAULT_MODEL, PRIOR_NAME):
                yield from check_model(name, "configs")


def free_out_dir(argv: Sequence[str]) -> str:
    """Return the first of NAME_2, NAME_3, … that is not used as out_dir. NAME: the out_dir of `argv`."""
    from configs.cli import load_configs, read_command

    taken = str(read_command(argv).shared_out_dir).rstrip("/")
    for number in itertools.count(2):
        name = f"{taken}_{number}"
        configs = load_configs([*argv, "--out_dir", name])
        if not any(config.run.output_folder.exists() for config in configs):
            return name
    raise AssertionError("itertools.count never ends")


def _device_rows(name: str, device: str) -> Iterator[Row]:
    count = importlib.import_module("torch").cuda.device_count()
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= count:
        found = f"device = {device!r}, and torch can use {count} CUDA devices"
        yield Row("configs", name, MISSING, found, "--device cpu, or a CUDA build of torch and a driver")


def write_table(rows: Iterable[Row]) -> None:
    rows = list(rows)
    width = max(len(row.name) for row in rows)
    for row in rows:
        fix = f"  fix: {row.fix}" if row.fix else ""
        sys.stdout.write(f"{row.group:<12} {row.status:<8} {row.name:<{width}}  {row.found}{fix}\n")
    missing = [row for row in rows if row.status == MISSING]
    names = ", ".join(row.name for row in missing)
    several = sum(row.group == "packages" for row in missing) > 1
    advice = "  fix: pip install -r requirements.txt" if several else ""
    sys.stdout.write(f"not ready: {names}{advice}\n" if missing else "ready: the demo can run\n")


def _local_places(name: str) -> dict[str, str | None] | None:
    """Return the result of sd.loading.hub.local_locations, or None if a package cannot be imported."""
    try:
        from sd.loading.hub import local_locations

        return local_locations(name)
    except Exception:  # The rows of the packages report this error.
        return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version_text(distribution: str, requirement: str) -> str:
    version = _version(distribution) or "version unknown"
    pinned = requirement.partition("==")[2]
    differs = pinned and version.partition("+")[0] != pinned
    return f"{version} (requirements.txt has {pinned})" if differs else version


def _one_line(error: BaseException) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
