"""`python3 train.py --check`: what this machine has, what is missing, and the fix for each missing thing.

Nothing outside the standard library is imported before it is looked at, so that a missing or broken package
is a row of the table. Nothing here asks the network or writes a file.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
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
COLOURS = {OK: "32", NOTE: "33", MISSING: "31"}

OLDEST, NEWEST = (3, 11), (3, 13)
PRIOR_NAME = "data/tiny-sd"
PRIOR = Path(__file__).resolve().parents[1] / PRIOR_NAME
# What the demo was measured to take at its peak, and what its output folders take with room to spare.
DEMO_MEMORY, DEMO_DISK = 1.2e9, 0.3e9


@dataclass(frozen=True)
class Row:
    """A line of the table: its group, the thing, how it is (OK, NOTE, MISSING), details, what mends it."""

    group: str
    name: str
    status: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Package:
    """A distribution of requirements.txt: what to import, and what the program does without it.

    without: empty where the demo cannot run without it. instead: another distribution that takes its place.
    """

    module: str
    attribute: str = ""
    without: str = ""
    instead: str = ""


PACKAGES = {
    "torch": Package("torch"),
    "diffusers": Package("diffusers", "UNet2DConditionModel"),
    "transformers": Package("transformers", "CLIPTextModel"),
    "safetensors": Package("safetensors"),
    "numpy": Package("numpy"),
    "numba": Package("numba", without="the CPU runs a slower rasteriser and encoding in torch"),
    "pydantic": Package("pydantic"),
    "jaxtyping": Package("jaxtyping"),
    "trimesh": Package("trimesh", without="of the mesh files only OBJ is read"),
    "libigl": Package(
        "igl", without="no start shape from a mesh file, no export_faces, no min_component_area"
    ),
    "xatlas": Package("xatlas", without="uvunwrap unwraps small meshes too", instead="uvunwrap"),
    "uvunwrap": Package("uvunwrap", without="xatlas unwraps large meshes too, slowly", instead="xatlas"),
    "imageio-ffmpeg": Package("imageio_ffmpeg"),
    "pillow": Package("PIL.Image"),
    "OpenEXR": Package("OpenEXR", without="no environment map in .exr, only .hdr"),
    "tqdm": Package("tqdm"),
}


def main(argv: Sequence[str]) -> int:
    """Prints the table; configs that argv names are checked too. 0: the demo and they can run, else 2."""
    setup_logging()
    rest = [word for word in argv if word != OPTION]
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows += survey(rest)
    write_table(rows, sys.stdout)
    return 2 if any(row.status == MISSING for row in rows) else 0


def survey(argv: Sequence[str] = ()) -> Iterator[Row]:
    """All rows, in the order of the table; argv as for a run."""
    yield from check_system()
    yield from check_packages(read_requirements())
    yield from check_gpu()
    yield from check_rasterisers()
    yield from check_weights()
    if argv:
        yield from check_configs(argv)


def check_system() -> Iterator[Row]:
    """Python, memory, disk."""
    version = ".".join(map(str, sys.version_info[:3]))
    found, supported = sys.version_info[:2], f"{_dotted(OLDEST)} to {_dotted(NEWEST)}"
    status = MISSING if found < OLDEST else NOTE if found > NEWEST else OK
    fix = "" if status == OK else f"make the virtual environment with Python {supported}"
    yield Row(
        "system", "Python", status, version if status == OK else f"{version}, tried is {supported}", fix
    )
    free, total = memory()
    enough = free is None or free >= DEMO_MEMORY
    amount = "unknown" if free is None else f"{_gigabytes(free)} free of {_gigabytes(total)}"
    need = "" if enough else f"; the demo takes {_gigabytes(DEMO_MEMORY)}"
    yield Row("system", "memory", OK if enough else NOTE, amount + need, "" if enough else "close programs")
    yield disk_row(Path("out"))


def disk_row(folder: Path) -> Row:
    """Space, and the right to write, where `folder` is or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    name = f"disk at {folder}/"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Row("system", name, MISSING, f"{there} cannot be written to", "run where you may write")
    free = shutil.disk_usage(there).free
    if free < DEMO_DISK:
        return Row("system", name, MISSING, f"{_gigabytes(free)} free", "delete something, or move elsewhere")
    return Row("system", name, OK, f"{_gigabytes(free)} free")


def memory() -> tuple[float | None, float]:
    """Bytes that a program can still get, and in all; (None, 0) where the system does not tell (no Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None, 0.0
    sizes = {
        name: 1024 * int(re.match(r"\s*(\d+)", rest)[1])
        for name, _, rest in (x.partition(":") for x in lines)
    }
    free, total = sizes["MemAvailable"], sizes["MemTotal"]
    # A container may allow less than the machine has.
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free, total
    return min(free, limit - used), min(total, limit)


def read_requirements(path: Path | None = None) -> dict[str, str]:
    """The distributions that requirements.txt names, each with its line: {"numba": "numba==0.68.1"}."""
    path = path or Path(__file__).parents[1] / "requirements.txt"
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {re.split(r"[=<>!~\[; ]", line)[0]: line for line in lines if line}


def check_packages(requirements: dict[str, str]) -> Iterator[Row]:
    """A row for each requirement, then kaolin, whose name on PyPI misleads."""
    faults = {name: _fault(PACKAGES.get(name, Package(name))) for name in requirements}
    for name, line in requirements.items():
        package = PACKAGES.get(name, Package(name))
        if faults[name] is None:
            yield Row("packages", name, OK, _version_text(name, line))
            continue
        spared = package.without and not (package.instead and faults.get(package.instead))
        found = faults[name] + (f"; without it {package.without}" if spared else "")
        yield Row("packages", name, NOTE if spared else MISSING, found, f"pip install '{line}'")
    yield _kaolin_row()


def _kaolin_row() -> Row:
    version = _version("kaolin")
    if version == "0.1":
        found = "0.1, which is PyPI's empty placeholder and not NVIDIA's library; the program uses neither"
        return Row("packages", "kaolin", NOTE, found, "pip uninstall kaolin")
    return Row("packages", "kaolin", OK, f"{version or 'not installed'}; not needed, libigl does its part")


def check_gpu() -> Iterator[Row]:
    """The devices that torch can use."""
    try:
        torch = importlib.import_module("torch")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for index in range(count):
            free, total = torch.cuda.mem_get_info(index)
            found = f"{torch.cuda.get_device_name(index)}, {_gigabytes(free)} free of {_gigabytes(total)}"
            yield Row("GPU", f"cuda:{index}", OK, f"{found}, CUDA {torch.version.cuda}")
    except Exception as error:  # A broken torch or driver fails in ways of its own.
        yield Row(
            "GPU", "CUDA", NOTE, f"cannot be asked: {_one_line(error)}", "mend torch first, then the driver"
        )
        return
    if count:
        return
    if torch.version.cuda is None:
        found, fix = (
            "none used: this torch is a build for CPUs",
            "with an NVIDIA GPU, install the CUDA build of torch",
        )
    else:
        found = f"none found by torch (CUDA {torch.version.cuda})"
        fix = "with an NVIDIA GPU, see that nvidia-smi works and that its driver is not older than this CUDA"
    yield Row("GPU", "CUDA", NOTE, f"{found}; the demo needs none, Stable Diffusion does", fix)


def check_rasterisers() -> Iterator[Row]:
    """What draws triangles, built as a run builds it; on CUDA nvdiffrast may compile for a minute."""
    try:
        from render.raster import select

        on_cuda = importlib.import_module("torch").cuda.is_available()
    except Exception as error:  # Whatever a broken package raises when it is imported.
        yield Row(
            "rasterisers", "any", NOTE, f"cannot be tried: {_one_line(error)}", "mend the packages first"
        )
        return
    for name, device, build in (
        ("numba", "cpu", select.build_numba),
        ("triton", "cuda", select.build_triton),
        ("nvdiffrast", "cuda", select.build_nvdiffrast),
    ):
        if device == "cuda" and not on_cuda:
            yield Row("rasterisers", name, OK, "not needed: it draws on CUDA only")
            continue
        try:
            build(importlib.import_module("torch").device(device))
            yield Row("rasterisers", name, OK, f"runs on {device}")
        except Exception as error:
            other = {"triton": "nvdiffrast, where it runs,", "nvdiffrast": "triton, where it runs,"}.get(
                name, "the slower reference"
            )
            found = f"{_one_line(error)}; without it {other} draws on {device}"
            yield Row("rasterisers", name, NOTE, found, select.REQUIREMENTS[name])


def check_weights() -> Iterator[Row]:
    """The embedded prior, and every place where Stable Diffusion is looked for."""
    if not PRIOR.is_dir():
        fix = "git checkout data/tiny-sd"
        yield Row("weights", PRIOR_NAME, MISSING, f"no such folder: {PRIOR}", fix)
    else:
        size = sum(file.stat().st_size for file in PRIOR.rglob("*.safetensors"))
        faults = _places(str(PRIOR))
        fault = faults and faults[str(PRIOR)]
        found = f"embedded prior, {size / 1e6:.1f} MB" + (f": {fault}" if fault else "")
        fix = "git checkout data/tiny-sd" if fault or not size else ""
        yield Row("weights", PRIOR_NAME, MISSING if fix else OK, found, fix)
    yield from model_rows("stable-diffusion-2-1-base", "weights")


def model_rows(name: str, group: str) -> Iterator[Row]:
    """A row for each place of the model `name`, up to the one that a run would take."""
    places = _places(name)
    if places is None:
        yield Row(group, name, NOTE, "cannot be looked for", "mend the packages first")
        return
    for place, fault in places.items():
        if fault is None:
            yield Row(group, place, OK, "complete; a run takes this one")
            return
        yield Row(group, place, NOTE, fault)
    fix = "--sd_model FOLDER or OWNER/NAME, see sd/README.md, Weights"
    yield Row(
        group, name, NOTE, "not on this machine; a run would ask the hub. The demo does not need it", fix
    )


def check_configs(argv: Sequence[str]) -> Iterator[Row]:
    """The configs of a command line, as a run would check them, but for downloads."""
    try:
        from configs.cli import load_configs
        from sd.loading.hub import DEFAULT_MODEL
        from training.resume import latest_checkpoint
    except Exception as error:  # Whatever a broken package raises when it is imported.
        yield Row("configs", "all", MISSING, f"cannot be read: {_one_line(error)}", "mend the packages first")
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
        yield disk_row(out)
        if config.guidance.sd_model not in (DEFAULT_MODEL, PRIOR_NAME):
            yield from model_rows(config.guidance.sd_model, "configs")


def free_out_dir(argv: Sequence[str]) -> str:
    """An out_dir with which no config of the command line `argv` finds an earlier run: NAME_2, NAME_3, …"""
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


def write_table(rows: Iterable[Row], stream) -> None:
    """Aligned rows with colour on a terminal; elsewhere one plain line a row."""
    rows = list(rows)
    pretty = stream.isatty() and "NO_COLOR" not in os.environ
    width = max(len(row.name) for row in rows)
    columns = shutil.get_terminal_size().columns
    group = None
    for row in rows:
        if row.group != group:
            group = row.group
            stream.write(f"\033[1m{group}\033[0m\n" if pretty else f"{group}\n")
        start = f"  {row.status:<8} {row.name:<{width}}  "
        if not pretty:
            stream.write(start + row.found + (f"  fix: {row.fix}" if row.fix else "") + "\n")
            continue
        indent = " " * len(start)
        text = textwrap.fill(row.found, columns, initial_indent=start, subsequent_indent=indent)
        if row.fix:
            text += "\n" + textwrap.fill(
                row.fix, columns, initial_indent=f"{indent}fix: ", subsequent_indent=indent
            )
        stream.write(text.replace(row.status, f"\033[{COLOURS[row.status]}m{row.status}\033[0m", 1) + "\n")
    stream.write(verdict(rows) + "\n")


def verdict(rows: Iterable[Row]) -> str:
    """The last line."""
    missing = [row for row in rows if row.status == MISSING]
    if not missing:
        return "ready: the demo can run"
    names = ", ".join(dict.fromkeys(row.name for row in missing))
    all_at_once = sum(row.group == "packages" for row in missing) > 1
    return f"not ready: {names}" + ("  fix: pip install -r requirements.txt" if all_at_once else "")


def _places(name: str) -> dict[str, str | None] | None:
    """`local_places` of sd.loading.hub; None where packages that it needs are missing."""
    try:
        from sd.loading.hub import local_places

        return local_places(name)
    except Exception:  # Whatever a broken package raises: the packages' rows tell.
        return None


def _fault(package: Package) -> str | None:
    """What is wrong with a package, None where it can be imported."""
    try:
        if importlib.util.find_spec(package.module.partition(".")[0]) is None:
            return "not installed"
        module = importlib.import_module(package.module)
        if package.attribute:
            getattr(module, package.attribute)
    except Exception as error:  # A broken package raises anything when it is imported.
        return f"broken: {_one_line(error)}"
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
    return f"{version} (requirements.txt names {pinned})" if differs else version


def _one_line(error: BaseException) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
