"""Versions and hardware of a run, as text."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = (
    "diffusers",
    "transformers",
    "safetensors",
    "numpy",
    "numba",
    "nvdiffrast",
    "kaolin",
    "trimesh",
    "libigl",
    "xatlas",
    "uvunwrap",
    "pillow",
    "OpenEXR",
    "imageio-ffmpeg",
    "pydantic",
)


def machine(device: torch.device) -> dict[str, str]:
    """Return a dict with the commit, Python, torch, device, operating system and installed packages."""
    found = {
        "program": _commit(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "device": _device(device),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {name: value for name, value in found.items() if value}


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU, {_processor()}, {cores} cores, {torch.get_num_threads()} threads of torch"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit of this checkout, or "" without git. A suffix marks modified files."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"commit {done.stdout.strip()}"
