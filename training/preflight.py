"""Startup validation: known failures are reported before any work is done."""

import tempfile
from collections.abc import Collection
from functools import cache
from pathlib import Path

from configs.schema import Config
from configs.validation import check_inputs
from render.mesh_io.write_usd import require_usd
from sd.loading.hub import resolve_model
from training.distributed import SINGLE_PROCESS, Distributed
from training.resume import latest_checkpoint
from training.run_log import require_tensorboard
from training.tasks import select_device


def check_config(
    config: Config, distributed: Distributed = SINGLE_PROCESS, written: Collection[Path] = ()
) -> None:
    """Raise ValueError or OSError if the config cannot run on this machine.

    Files and the output folder are checked on rank 0 only. written: meshes that the command itself writes.
    """
    select_device(config.run.device, distributed)
    if config.run.log == "tensorboard":
        require_tensorboard()
    check_model(config.guidance.sd_model)
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


@cache
def check_model(name: str) -> None:
    """Resolve the model once for all trials of a sweep: a hub id is looked up over the network."""
    resolve_model(name)
