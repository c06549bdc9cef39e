"""The parts of a prior, loaded: from a folder in diffusers layout or from a single file."""

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sd.loading import ldm_format, single_file
from sd.loading.check_settings import check_parts, check_sizes, warn_without_merges
from sd.loading.hub import KINDS_FILE, weights_variant


class WeightsMissing(ValueError):
    """A part's files do not hold all of its weights."""


@dataclass(frozen=True)
class Parts:
    """What a prior is made of; the VAE without its decoder.

    schedule: the scheduler's numbers, among them prediction_type; kinds: what a small prior was trained on,
    empty for one that knows the world.
    """

    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: object
    schedule: object
    kinds: tuple[str, ...] = ()


def load_parts(path: str, device: torch.device, prediction: str = "auto") -> Parts:
    """Load what `sd.loading.hub.resolve_model` found; fp16 on CUDA, fp32 on the CPU.

    prediction: "epsilon" or "v_prediction" where the model's own files are wrong or silent.

    Raises:
        ValueError: a file cannot be read as what it should be.
    """
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    load = _from_folder if Path(path).is_dir() else _from_file
    try:
        parts = load(Path(path), dtype, device, None if prediction == "auto" else prediction)
        check_parts(path, parts)
        return parts
    except (FileNotFoundError, WeightsMissing):
        raise
    # Loaders fail in their own ways on damaged files, some with a bare Exception.
    except Exception as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" …")
        raise ValueError(f"sd_model: cannot be loaded from {path}: {reason}") from error


def _from_folder(folder: Path, dtype: torch.dtype, device: torch.device, prediction: str | None) -> Parts:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    check_sizes(folder)
    warn_without_merges(folder)

    def load(kind, part: str, **options):
        variant = weights_variant(folder, part)
        loaded, report = kind.from_pretrained(
            folder, subfolder=part, variant=variant, output_loading_info=True, **options
        )
        _check_complete(folder, part, report["missing_keys"])
        return loaded

    # Without accelerate, which is not needed here, the low-memory path only warns.
    plain = {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    unet = load(UNet2DConditionModel, "unet", **plain)
    vae = load(AutoencoderKL, "vae", **plain)
    # Only the encoder is used: the decoder's weights would be memory for nothing.
    vae.decoder = vae.post_quant_conv = None
    text_encoder = load(CLIPTextModel, "text_encoder", dtype=dtype)
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    stated = {"prediction_type": prediction} if prediction else {}
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", **stated)
    return Parts(unet, vae, text_encoder, tokenizer, scheduler.config, known_kinds(folder))


def _from_file(path: Path, dtype: torch.dtype, device: torch.device, prediction: str | None) -> Parts:
    from diffusers import DDPMScheduler

    weights, metadata = single_file.read_checkpoint(path)
    second = ldm_format.is_second_version(weights)
    tokenizer = single_file.make_tokenizer(path, second)
    unet, vae, text_encoder = single_file.build_modules(weights, dtype)
    prediction = prediction or single_file.stated_prediction(metadata, second)
    prediction = prediction or single_file.measured_prediction(unet.to(device))
    if second and prediction == "v_prediction":
        unet.register_to_config(sample_size=single_file.LATENT_OF_V)
    scheduler = DDPMScheduler(**single_file.SCHEDULE, prediction_type=prediction)
    return Parts(unet, vae, text_encoder, tokenizer, scheduler.config)


def _check_complete(folder: Path, part: str, missing: Iterable[str]) -> None:
    """Refuse weights that would be left at random; what only the VAE's unused decoder lacks is no matter."""
    missing = sorted(key for key in missing if not key.startswith(("decoder.", "post_quant_conv.")))
    if missing:
        raise WeightsMissing(
            f"sd_model: {len(missing)} weights of its {part} are missing in {folder}, {missing[0]} first: "
            "get the model again, or name another"
        )


def known_kinds(folder: str | Path) -> tuple[str, ...]:
    """The objects that kinds.json beside a small prior's weights names; no file, no limit."""
    path = Path(folder) / KINDS_FILE
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ()
