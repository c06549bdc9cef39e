"""Startup validation: what is known to fail is reported before any work is done."""

import tempfile
from functools import cache

from configs.schema import Config
from render.image_io.hdr import read_latlong
from render.mesh_io.write_usd import require_usd
from render.shade.light import resolve_map
from sd.loading.hub import resolve_model
from sd.loading.lora import parse_lora
from training.distributed import SINGLE_PROCESS, Distributed
from training.resume import latest_checkpoint
from training.run_log import require_tensorboard
from training.tasks import select_device


def check_config(config: Config, distributed: Distributed = SINGLE_PROCESS) -> None:
    """Raise ValueError or OSError if the config cannot run on this machine.

    Files and the output folder are checked on rank 0 only.
    """
    select_device(config.run.device, distributed)
    if config.run.log == "tensorboard":
        require_tensorboard()
    check_model(config.guidance.sd_model)
    for entry in config.guidance.lora:
        parse_lora(entry)
    if config.export.export_usd:
        require_usd()
    if not distributed.is_main:
        return
    latest_checkpoint(config)
    for path in (config.light.envmap, config.light.relight):
        if path is not None:
            check_map(path)
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


@cache
def check_map(path: str) -> None:
    """Read the map once for all trials of a sweep: a large map takes a second."""
    read_latlong(resolve_map(path))
