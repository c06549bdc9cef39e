"""Build the guidance of a config: its priors, ControlNet and prompts."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from configs.schema import Config
from sd.guidance import Guidance
from sd.loading.control_folder import control_files, load_control_net, resolve_control_net
from sd.mixed_guidance import MixedGuidance
from sd.stable_diffusion import StableDiffusion
from training.input_files import InputFiles, control_model, model_paths
from training.report.report_writer import RunReport

logger = logging.getLogger(__name__)


def build_guidance(
    config: Config, device: torch.device, report: RunReport, inputs: InputFiles
) -> Guidance | MixedGuidance:
    """The prior with its prompts embedded, or two priors and their weights.

    Raises:
        ValueError, FileNotFoundError: a model is missing, damaged or does not fit; one line with the key.
    """
    settings = config.guidance
    with report.timed("the prior's set-up"):
        parts = [_build_part(config, device, inputs, "sd_model")]
        if settings.second_sd_model is not None:
            parts.append(_build_part(config, device, inputs, "second_sd_model"))
        check_batch(config, max(part.views for part in parts))
        _log_memory(parts)
        if len(parts) == 1:
            return parts[0]
        return MixedGuidance(parts, (settings.sd_model_weight, settings.second_sd_model_weight))


def _build_part(config: Config, device: torch.device, inputs: InputFiles, key: str) -> Guidance:
    """The guidance of the prior that `key` names."""
    settings, is_first = config.guidance, key == "sd_model"
    name = getattr(settings, key)
    with inputs.reading(key, *model_paths(config, key)), naming_key(key):
        prior = StableDiffusion.from_pretrained(
            name,
            device,
            settings.lora if is_first else (),
            settings.prediction_type,
            settings.cpu_bfloat16,
            keep_trainable=settings.score == "vsd",
        )
    if is_first and (control := control_model(config)) is not None:
        folder = resolve_control_net(control)
        with inputs.reading("control_model", *control_files(folder)):
            prior.attach_control_net(load_control_net(folder, prior.unet.dtype))
    if warning := prior.unknown_prompt_warning(settings.text):
        logger.warning("%s", warning)
    guidance = Guidance(prior, settings, config.run.traits.negative_prompt, device, config.run.seed)
    prior.free_text_encoder()
    return guidance


def check_batch(config: Config, views: int) -> None:
    """Raise ValueError if `batch` is not a multiple of the views that the prior takes together."""
    if config.run.batch % views:
        raise ValueError(
            f"batch = {config.run.batch}: the prior takes groups of {views} views of one object; use a "
            f"multiple of {views}"
        )


def _log_memory(parts: list[Guidance]) -> None:
    """Log the memory of the weights if there is more than one network."""
    if len(parts) == 1 and parts[0].control is None:
        return
    sizes = [part.prior.weight_bytes / 1e9 for part in parts]
    each = " + ".join(f"{size:.2f}" for size in sizes)
    control = " (the first with its ControlNet)" if parts[0].control else ""
    logger.info(
        "weights of the priors%s: %s GB", control, each if len(sizes) == 1 else f"{each} = {sum(sizes):.2f}"
    )


@contextmanager
def naming_key(key: str) -> Iterator[None]:
    """Replace sd_model in the message of an error by the config key whose model is loaded."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if key == "sd_model":
            raise
        raise type(error)(re.sub(r"\bsd_model\b", key, str(error))) from error
