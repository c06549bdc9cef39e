"""Locate and load a ControlNet from a folder in diffusers layout or a hub id."""

import json
import textwrap
from pathlib import Path

import torch
from torch import nn

from sd.loading.hub import WEIGHT_NAME, fetch, is_hub_id, repository_path

CONFIG, CLASS = "config.json", "ControlNetModel"


def resolve_control_net(name: str) -> Path:
    """Return the local folder of a ControlNet. If `name` is a hub id, the ControlNet is downloaded.

    Raises:
        FileNotFoundError: if the folder does not exist or is incomplete.
        ValueError: if the folder contains another type of model.
    """
    folder = repository_path(name)
    if not folder.is_dir():
        if folder.is_file() or not is_hub_id(name):
            what = "is a file" if folder.is_file() else "is no such folder"
            raise FileNotFoundError(f"control_model = {name!r}: {what}; name a folder in diffusers layout")
        try:
            folder = fetch(name, [CONFIG, "*.safetensors"], ["*.fp16.*", "*/*"])
            if not control_files(folder)[1:]:
                # Half-precision weights are downloaded here, because some repositories contain no others.
                folder = fetch(name, [CONFIG, "*.fp16.safetensors"], ["*/*"])
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"control_model = {name!r}: not in the hub cache, and the hub cannot be reached "
                f"({type(error).__name__}); name a local folder in diffusers layout"
            ) from error
    _check_folder(name, folder)
    return folder


def control_files(folder: Path) -> list[Path]:
    """Return the files in a ControlNet's folder that are read."""
    weights = (file for file in folder.glob("*.safetensors") if WEIGHT_NAME.fullmatch(file.name))
    return [folder / CONFIG, *sorted(weights)]


def _check_folder(name: str, folder: Path) -> None:
    files = control_files(folder)
    found = {CONFIG: files[0].is_file(), "*.safetensors": bool(files[1:])}
    missing = [file for file, present in found.items() if not present]
    if missing:
        raise FileNotFoundError(
            f"control_model = {name!r}: incomplete, it lacks {' and '.join(missing)}; a ControlNet in "
            "diffusers layout has config.json and diffusion_pytorch_model.safetensors"
        )
    try:
        kind = json.loads(files[0].read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"control_model = {name!r}: {files[0]} is not a JSON object; get it again"
        ) from error
    if kind != CLASS:
        raise ValueError(
            f"control_model = {name!r}: it holds {kind or 'no class name'}, and {CLASS} is needed"
        )


def load_control_net(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load the `ControlNetModel` in a folder.

    Raises:
        ValueError: if a file is damaged or lacks weights.
    """
    from diffusers import ControlNetModel

    # Files in full precision are preferred, as for a prior.
    variants = [WEIGHT_NAME.fullmatch(file.name)["variant"] for file in control_files(folder)[1:]]
    variant = min(variants, key=lambda name: (name is not None, str(name)))
    try:
        loaded, report = ControlNetModel.from_pretrained(
            folder,
            variant=variant,
            torch_dtype=dtype,
            low_cpu_mem_usage=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    # All types are caught, because the loader raises errors of many types for damaged files.
    except Exception as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" …")
        raise ValueError(f"control_model: cannot be loaded from {folder}: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"control_model: {len(missing)} weights are missing in {folder}, {missing[0]} first: get the "
            "model again, or name another"
        )
    return loaded
