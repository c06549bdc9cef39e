"""Checks of a model's settings at startup. A wrong value raises an error with a message of one line."""

import json
import logging
import math
from pathlib import Path

from sd.loading import ldm_format
from sd.loading.mvdream_folder import is_mvdream
from sd.multi_view import stated_views

logger = logging.getLogger(__name__)

# The maximum number of layers, and the maximum of the other sizes in config.json. All published models are
# below these limits. Larger models take minutes to build or do not fit into memory.
MOST_LAYERS, MOST = 200, 1_000_000
PARTS = ("unet", "vae", "text_encoder")


def check_sizes(folder: Path) -> None:
    """Check the numbers in config.json of unet, vae and text_encoder before the modules are built.

    Raises:
        ValueError: if a value is wrong. The message contains file, key and value.
    """
    for part in PARTS:
        path = folder / part / "config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"{path} is not a JSON object")
        for key, value in settings.items():
            most = MOST_LAYERS if "layers" in key else MOST
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float) and not abs(number) <= most:
                    raise ValueError(f"{path}: {key} = {number} is too large; the maximum is {most}")


def model_views(path: str | Path) -> int:
    """Return the number of views that a model denoises together. The weights are not read.

    path: a folder in diffusers layout or a single file. If a file is damaged, the result is 1. The error for
    a damaged file is raised when the model is loaded.

    Raises:
        ValueError: if the denoiser's settings are not supported (see `stated_views`).
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        if path.is_dir():
            settings = json.loads((path / "unet/config.json").read_text(encoding="utf-8"))
            if not isinstance(settings, dict):
                return 1
            return ldm_format.VIEWS if is_mvdream(settings) else stated_views(settings)
        with safe_open(path, framework="pt") as file:
            return ldm_format.views(dict.fromkeys(file.keys()))
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return 1
    except ValueError as error:
        raise ValueError(f"sd_model = {str(path)!r}: {error}") from error


def check_parts(path: str | Path, parts: object) -> None:
    """Check the settings of loaded parts (see `sd.loading.weights.Parts`), and set a missing token limit.

    Raises:
        ValueError: if a setting is wrong. The message contains the model, the setting and its value.
    """
    encoder = parts.text_encoder.config
    limit = parts.tokenizer.model_max_length
    if not isinstance(limit, int) or limit > encoder.max_position_embeddings:
        # The text encoder's limit is used here, because transformers sets the tokenizer's limit to 1e30 if
        # tokenizer_config.json contains no limit.
        parts.tokenizer.model_max_length = limit = encoder.max_position_embeddings
    if limit < 3:
        raise ValueError(f"{path}: tokenizer: model_max_length = {limit}; at least 3 tokens are needed")
    largest = max(parts.tokenizer.get_vocab().values(), default=0)
    if largest >= encoder.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has the id {largest}, and the text encoder has {encoder.vocab_size} "
            "embeddings; they belong to different models"
        )
    for name, value, most in (
        ("scheduler: num_train_timesteps", parts.schedule.num_train_timesteps, 100_000),
        ("unet: sample_size", parts.unet.config.sample_size, 1024),
    ):
        if type(value) is not int or not 0 < value <= most:
            raise ValueError(f"{path}: {name} = {value!r}; allowed is an integer from 1 to {most}")
    factor = parts.vae.config.scaling_factor
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise ValueError(f"{path}: vae: scaling_factor = {factor!r}; allowed is a positive number")
    if not all(isinstance(name, str) for name in parts.categories):
        raise ValueError(
            f"{path}: categories.json must be a list of texts, not {list(parts.categories)[:3]!r}"
        )


def warn_without_merges(folder: Path) -> None:
    """Log a warning if the tokenizer has no merges. Such a tokenizer splits every word into letters."""
    path = folder / "tokenizer" / "merges.txt"
    if path.is_file() and not path.read_text(encoding="utf-8", errors="replace").strip():
        logger.warning("warning: %s is empty, so words are split into letters; download the file again", path)
