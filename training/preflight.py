"""Startup validation. It reports known causes of failure before the run starts."""

import tempfile
from collections.abc import Collection
from functools import cache
from pathlib import Path

from configs.schema import Config
from configs.validation import check_inputs
from render.mesh_io.write_usd import require_usd
from sd.loading.check_settings import model_views
from sd.loading.control_folder import resolve_control_net
from sd.loading.hub import resolve_model
from training.distributed import SINGLE_PROCESS, Distributed
from training.input_files import control_model
from training.priors import check_batch, naming_key
from training.resume import latest_checkpoint
from training.run_log import require_tensorboard
from training.tasks import select_device


def check_config(
    config: Config, distributed: Distributed = SINGLE_PROCESS, written: Collection[Path] = ()
) -> None:
    """Raise ValueError or OSError if the config cannot run on this machine.

    Files and the output folder are checked on rank 0 only. written: meshes that this command will write, so
    they need not exist yet.
    """
    select_device(config.run.device, distributed)
    if config.run.log == "tensorboard":
        require_tensorboard()
    check_models(config)
    if config.export.export_usd:
        require_usd()
    if not distributed.is_main:
        return
    latest_checkpoint(config)
    check_inputs(config, written)
    out = config.run.output_folder
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"out_dir = {config.run.out_dir!r}: cannot write to {out}: {reason}") from error


def check_models(config: Config) -> None:
    """Check that the models of the config exist and that `batch` is a multiple of the views of a model."""
    guidance = config.guidance
    views = check_model(guidance.sd_model)
    if guidance.second_sd_model is not None:
        with naming_key("second_sd_model"):
            views = max(views, check_model(guidance.second_sd_model))
    check_batch(config, views)
    if (control := control_model(config)) is not None:
        resolve_control_net(control)


@cache
def check_model(name: str) -> int:
    """Check that a model exists, and return the number of views that it processes together.

    The result is cached for all trials of a sweep, because checking a model on the hub needs a network
    request.
    """
    return model_views(resolve_model(name))
