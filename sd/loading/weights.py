"""Load the parts of a prior from a folder in diffusers layout or from a single file."""

import json
import logging
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sd.loading import ldm_format, mvdream_folder, single_file
from sd.loading.check_settings import check_parts, check_sizes, warn_without_merges
from sd.loading.hub import CATEGORIES_FILE, weights_variant
from sd.loading.lean_imports import layers_without_values
from sd.loading.noise_schedule import NoiseSchedule, load_noise_schedule

# The width of the text embeddings of 2.x.
SECOND_TEXT_WIDTH = 1024


class WeightsMissing(ValueError):
    """Error for a part whose files do not contain all of its weights."""


@dataclass(frozen=True)
class Parts:
    """The parts of a prior. The VAE has no decoder.

    schedule: abar(t) and the prediction type. categories: the object categories in the training set of a
    small prior. categories is empty for a general prior.
    """

    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: object
    schedule: NoiseSchedule
    categories: tuple[str, ...] = ()


def load_parts(path: str, device: torch.device, prediction: str = "auto") -> Parts:
    """Load the model at `path` (see `sd.loading.hub.resolve_model`) in fp16 on CUDA and fp32 on the CPU.

    prediction: "epsilon", "v_prediction", or "auto" to read the type from the model's files.

    Raises:
        ValueError: if a file is damaged or has the wrong format.
    """
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    load = _from_folder if Path(path).is_dir() else _from_file
    try:
        parts = load(Path(path), dtype, device, None if prediction == "auto" else prediction)
        check_parts(path, parts)
        return parts
    except (FileNotFoundError, WeightsMissing):
        raise
    # All types are caught, because the loaders raise errors of many types for damaged files, including plain
    # Exception.
    except Exception as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" …")
        raise ValueError(f"sd_model: cannot be loaded from {path}: {reason}") from error


def _from_folder(folder: Path, dtype: torch.dtype, device: torch.device, prediction: str | None) -> Parts:
    from diffusers import AutoencoderKL, UNet2DConditionModel
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

    # low_cpu_mem_usage is False, because True only causes a warning if the package accelerate is not
    # installed.
    plain = {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    settings = json.loads((folder / "unet/config.json").read_text(encoding="utf-8"))
    if mvdream_folder.is_mvdream(settings):
        unet = mvdream_folder.load_denoiser(_weight_file(folder, "unet"), settings, dtype)
    else:
        with views_accepted():
            unet = load(UNet2DConditionModel, "unet", **plain)
    vae = load(AutoencoderKL, "vae", **plain)
    # Only the encoder is used, so the decoder's weights are freed.
    vae.decoder = vae.post_quant_conv = None
    with layers_without_values():
        text_encoder = load(CLIPTextModel, "text_encoder", dtype=dtype)
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    settings = json.loads((folder / "scheduler/scheduler_config.json").read_text(encoding="utf-8"))
    schedule = load_noise_schedule(settings, prediction)
    unet.register_to_config(sample_size=_latent_size(folder, unet.config, schedule.prediction_type))
    return Parts(unet, vae, text_encoder, tokenizer, schedule, known_categories(folder))


def _weight_file(folder: Path, part: str) -> Path:
    """Return the only .safetensors file of a part. Raises FileNotFoundError if there is not exactly one."""
    variant = weights_variant(folder, part)
    path = folder / part / f"diffusion_pytorch_model.{variant + '.' if variant else ''}safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"sd_model = {str(folder)!r}: {part}/{path.name} is needed as one file")
    return path


@contextmanager
def views_accepted() -> Iterator[None]:
    """Suppress diffusers' warning that `views` in unet/config.json is not a parameter of the class.

    The config still contains the value, and `sd.multi_view.stated_views` reads it there.
    """
    import diffusers.configuration_utils as module

    def other(record: logging.LogRecord) -> bool:
        return "{'views':" not in record.getMessage()

    source = logging.getLogger(module.__name__)
    source.addFilter(other)
    try:
        yield
    finally:
        source.removeFilter(other)


def _latent_size(folder: Path, unet: Mapping[str, object], prediction: str) -> object:
    """Return the height and width of the latents with which the denoiser was trained, according to its
    config.json. Only square latents are supported.

    A sample_size of [64, 64] means 64. If sample_size is missing, the size is computed from the VAE's image
    size. If the image size is missing too, the result is 64 as in 1.x and 2.x-base, or 96 for a 2.x model
    that predicts v.

    Raises:
        ValueError: if the two numbers in sample_size differ.
    """
    size = unet.get("sample_size")
    if isinstance(size, list | tuple) and len(size) == 2:
        if size[0] != size[1]:
            raise ValueError(f"{folder}: unet: sample_size = {list(size)}; only square latents are supported")
        return size[0]
    if size is not None:
        return size
    vae = json.loads((folder / "vae/config.json").read_text(encoding="utf-8"))
    levels = len(vae.get("block_out_channels", ()))
    if isinstance(vae.get("sample_size"), int) and levels:
        return vae["sample_size"] // 2 ** (levels - 1)
    second = unet.get("cross_attention_dim") == SECOND_TEXT_WIDTH
    return single_file.LATENT_OF_V if second and prediction == "v_prediction" else single_file.LATENT


def _from_file(path: Path, dtype: torch.dtype, device: torch.device, prediction: str | None) -> Parts:
    weights, metadata = single_file.read_checkpoint(path)
    second = ldm_format.is_second_version(weights)
    tokenizer = single_file.make_tokenizer(path, second)
    unet, vae, text_encoder = single_file.build_modules(weights, dtype)
    prediction = prediction or single_file.prediction_from_metadata(metadata, second)
    prediction = prediction or single_file.prediction_from_output(unet.to(device))
    views = ldm_format.views(weights)
    if views > 1:
        unet.register_to_config(views=views, sample_size=single_file.LATENT_OF_VIEWS)
    elif second and prediction == "v_prediction":
        unet.register_to_config(sample_size=single_file.LATENT_OF_V)
    schedule = load_noise_schedule(single_file.SCHEDULE, prediction)
    return Parts(unet, vae, text_encoder, tokenizer, schedule)


def _check_complete(folder: Path, part: str, missing: Iterable[str]) -> None:
    """Raise WeightsMissing if weights of a part are missing. The VAE's unused decoder is ignored."""
    missing = sorted(key for key in missing if not key.startswith(("decoder.", "post_quant_conv.")))
    if missing:
        raise WeightsMissing(
            f"sd_model: {len(missing)} weights of its {part} are missing in {folder}, {missing[0]} first: "
            "get the model again, or name another"
        )


def known_categories(folder: str | Path) -> tuple[str, ...]:
    """Return the object categories in a small prior's categories.json, or () if the file does not exist."""
    path = Path(folder) / CATEGORIES_FILE
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ()
