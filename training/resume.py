"""Resuming: what a checkpoint of a run holds, and whether a config may go on from it."""

import logging
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from configs.schema import Config
from training.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    load_latest,
    restore_optimizer,
    save_checkpoint,
    sha256_of_file,
)
from training.distributed import SINGLE_PROCESS, Distributed

logger = logging.getLogger(__name__)

# A resumed run may differ from the one that wrote the checkpoint in these keys, and in no other.
MAY_CHANGE = {
    "checkpoint_interval",
    "device",
    "display",
    "min_component_area",
    "export_faces",
    "export_usd",
    "grad_accum",
    "iter",
    "log",
    "low_memory",
    "preview_res",
    "rasteriser",
    "relight",
    "save_interval",
    "texture_res",
    "validate",
    "video_interval",
}


def checkpoint_folder(config: Config) -> Path:
    return config.run.output_folder / "checkpoints"


def is_exported(config: Config) -> bool:
    """Whether the mesh has been written since the last checkpoint.

    Runs that paint a mesh resume only from its very bytes, which another export may change: its UVs follow
    texture_res, and sums on a GPU differ in their last bits.
    """
    folder = config.run.mesh_path.parent
    files = [folder / "mesh.obj", folder / "mesh.glb"]
    states = checkpoint_folder(config).glob("step_*/state.json")
    newest = max((state.stat().st_mtime_ns for state in states), default=0)
    return all(file.is_file() and file.stat().st_mtime_ns > newest for file in files)


def settings(config: Config) -> dict[str, object]:
    """What a checkpoint must agree on with the run that resumes it."""
    values = {key: value for key, value in config.to_json().items() if key not in MAY_CHANGE}
    if config.run.base_mesh is not None and Path(config.run.base_mesh).is_file():
        path = Path(config.run.base_mesh)
        values["content of base_mesh"] = _content(path, path.stat().st_mtime_ns, path.stat().st_size)
    return values


@cache
def _content(path: Path, modified_ns: int, size: int) -> str:
    """A file's digest; read once as long as its time and size stay, as every checkpoint asks."""
    return sha256_of_file(path)


def latest_checkpoint(config: Config) -> Checkpoint | None:
    """The checkpoint to resume from, None to start afresh.

    Raises:
        ValueError: out_dir holds a run with other settings.
    """
    checkpoint = load_latest(checkpoint_folder(config))
    if checkpoint is None:
        return None
    now, then = settings(config), checkpoint.meta.get("settings")
    if not isinstance(then, dict):
        raise _foreign(config, checkpoint, "no settings")
    different = [key for key in now if key in then and now[key] != then[key]]
    if different:
        key = different[0]
        raise ValueError(
            f"out_dir = {config.run.out_dir!r}: it holds a run with another {key} ({then[key]!r}, now "
            f"{now[key]!r}); choose another out_dir, or delete {checkpoint_folder(config)} to start afresh"
        )
    if checkpoint.step > config.schedule.iter:
        raise ValueError(
            f"iter = {config.schedule.iter}: {checkpoint_folder(config)} is past it ({checkpoint.step}); "
            "choose another out_dir, or delete that folder to start afresh"
        )
    return checkpoint


def save_state(
    config: Config,
    scene: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    distributed: Distributed = SINGLE_PROCESS,
) -> None:
    """Everything that the next step depends on, atomically; only one rank may do this."""
    tensors, meta = flatten_optimizer(optimizer)
    weights = {f"scene.{name}": value for name, value in scene.state_dict().items()}
    moments = {f"optimizer.{name}": value for name, value in tensors.items()}
    meta = {
        "settings": settings(config),
        "optimizer": meta,
        "shares": [distributed.world_size, config.run.grad_accum],
    }
    save_checkpoint(checkpoint_folder(config), step, weights | moments, meta)


def restore_state(
    config: Config,
    scene: nn.Module,
    optimizer: torch.optim.Optimizer,
    distributed: Distributed = SINGLE_PROCESS,
) -> int:
    """Put the last checkpoint back; returns its step, 0 where there is none.

    The first rank reads it and gives it to the others, which need not see its disk.
    """
    step = _read_state(config, scene, optimizer, distributed) if distributed.is_main else 0
    return distributed.broadcast_state(scene, optimizer, step)


def _read_state(
    config: Config, scene: nn.Module, optimizer: torch.optim.Optimizer, distributed: Distributed
) -> int:
    checkpoint = latest_checkpoint(config)
    if checkpoint is None:
        return 0

    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: t for name, t in checkpoint.tensors.items() if name.startswith(prefix)}

    try:
        scene.load_state_dict(part("scene."))
        restore_optimizer(optimizer, part("optimizer."), checkpoint.meta["optimizer"])
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise _foreign(config, checkpoint, error) from error
    logger.info("resuming after step %d from %s", checkpoint.step, checkpoint_folder(config))
    _log_micro_batch_change(config, checkpoint, distributed)
    return checkpoint.step


def _foreign(config: Config, checkpoint: Checkpoint, reason: object) -> ValueError:
    detail = " ".join(str(reason).split())[:300]
    return ValueError(
        f"the checkpoint of step {checkpoint.step} in {checkpoint_folder(config)} holds something else than "
        f"this run ({detail}); delete it to go on from the one before"
    )


def _log_micro_batch_change(config: Config, checkpoint: Checkpoint, distributed: Distributed) -> None:
    """Another number of batches a step is allowed; what follows from it is told."""
    then = checkpoint.meta.get("shares", [1, 1])
    if not (isinstance(then, list) and [type(count) for count in then] == [int, int]):
        raise _foreign(config, checkpoint, f"shares {then!r}")
    now = [distributed.world_size, config.run.grad_accum]
    if then == now:
        return
    message = "the checkpoint is of processes × grad_accum = %d × %d, this run is %d × %d: "
    if then[0] * then[1] == now[0] * now[1]:
        message += "the same views a step; sums are rounded differently"
        logger.info(message, *then, *now)
    else:
        message += "a step now takes %d views instead of %d, from other cameras and with other noise"
        views = (config.run.batch * processes * parts for processes, parts in (now, then))
        logger.warning(message, *then, *now, *views)
