"""Build the guidance of a config: its priors, ControlNet and prompts."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from configs.schema import Config
from sd.guidance import Guidance
from sd.loading.control_folder import control_files, load_control_net, resolve_control_net
from sd.loading.lean_imports import import_prior_packages
from sd.mixed_guidance import MixedGuidance
from sd.stable_diffusion import StableDiffusion
from training.collector import collector_paused
from training.input_files import InputFiles, control_model, model_paths
from training.report.report_writer import RunReport

logger = logging.getLogger(__name__)


def build_guidance(
    config: Config, device: torch.device, report: RunReport, inputs: InputFiles
) -> Guidance | MixedGuidance:
    """Load the priors of a config, embed their prompts, and return the guidance.

    Raises:
        ValueError, FileNotFoundError: if a model is missing, damaged or not suitable. The message is one line
            and contains the config key.
    """
    with report.timed("the prior's set-up"), collector_paused():
        priors = load_priors(config, device, inputs)
        if warning := priors[0].unknown_prompt_warning(config.guidance.text):
            logger.warning("%s", warning)
        guidance = make_guidance(config, priors, device)
        for prior in priors:
            prior.free_text_encoder()
        _log_memory(priors)
        return guidance


def load_priors(config: Config, device: torch.device, inputs: InputFiles) -> list[StableDiffusion]:
    """Load the prior of sd_model with its ControlNet, and the prior of second_sd_model if this key is set."""
    import_prior_packages()
    priors = [_load_prior(config, device, inputs, "sd_model")]
    if (control := control_model(config)) is not None:
        folder = resolve_control_net(control)
        with inputs.reading("control_model", *control_files(folder)):
            priors[0].attach_control_net(load_control_net(folder, priors[0].unet.dtype))
    if config.guidance.second_sd_model is not None:
        priors.append(_load_prior(config, device, inputs, "second_sd_model"))
    check_batch(config, max(prior.views for prior in priors))
    return priors


def make_guidance(
    config: Config, priors: Sequence[StableDiffusion], device: torch.device
) -> Guidance | MixedGuidance:
    """Build the guidance from the result of `load_priors`."""
    settings, default_negative_text = config.guidance, config.run.traits.negative_prompt
    parts = [Guidance(prior, settings, default_negative_text, device, config.run.seed) for prior in priors]
    if len(parts) == 1:
        return parts[0]
    return MixedGuidance(parts, (settings.sd_model_weight, settings.second_sd_model_weight))


def _load_prior(config: Config, device: torch.device, inputs: InputFiles, key: str) -> StableDiffusion:
    """Load the prior that the config key `key` names."""
    settings = config.guidance
    with inputs.reading(key, *model_paths(config, key)), naming_key(key):
        return StableDiffusion.from_pretrained(
            getattr(settings, key),
            device,
            settings.lora if key == "sd_model" else (),
            settings.prediction_type,
            settings.cpu_bfloat16,
            keep_trainable=settings.score == "vsd",
        )


def check_batch(config: Config, views: int) -> None:
    """Raise ValueError if `batch` is not a multiple of `views`.

    views: number of views that the prior processes together.
    """
    if config.run.batch % views:
        raise ValueError(
            f"batch = {config.run.batch}: the prior takes groups of {views} views of one object; use a "
            f"multiple of {views}"
        )


def _log_memory(priors: Sequence[StableDiffusion]) -> None:
    """Log the memory of the weights if there are several networks."""
    if len(priors) == 1 and priors[0].control_net is None:
        return
    sizes = [prior.weight_bytes / 1e9 for prior in priors]
    total = " + ".join(f"{size:.2f}" for size in sizes)
    total += f" = {sum(sizes):.2f}" if len(sizes) > 1 else ""
    control = " (the first with its ControlNet)" if priors[0].control_net is not None else ""
    logger.info("weights of the priors%s: %s GB", control, total)


@contextmanager
def naming_key(key: str) -> Iterator[None]:
    """In the message of an error, replace sd_model by `key`, the config key whose model is loaded."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if key == "sd_model":
            raise
        raise type(error)(re.sub(r"\bsd_model\b", key, str(error))) from error
