"""Resume a run: the content of a checkpoint, and the check whether a config can continue from it."""

import json
import logging
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from configs.schema import Config, section_keys
from configs.validation import DMTET_ONLY, MESH_SURFACE_ONLY
from render.async_copy import AsyncCopy
from render.image_io.atomic import write_text
from sd.guidance import Guidance
from training.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    load_latest,
    newest_digest,
    newest_step,
    restore_optimizer,
    save_checkpoint,
)
from training.distributed import SINGLE_PROCESS, Distributed
from training.input_files import InputFiles

logger = logging.getLogger(__name__)

EXPORT_RECORD = "export.json"

# Keys that may change when a run is resumed. Keys that the mode does not use may also change.
MAY_CHANGE = {
    "atlas",
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


def record_export(config: Config, step: int) -> None:
    """Record that the exported mesh was made from the checkpoint of `step`."""
    write_text(config.run.mesh_path.parent / EXPORT_RECORD, json.dumps(_export_record(config, step)) + "\n")


def is_exported(config: Config, step: int) -> bool:
    """Return whether the exported mesh was made from the checkpoint of `step`.

    The bytes of an exported shape must not change, because an appearance run can be resumed only with an
    unchanged mesh. A second export may change the bytes, because the UVs depend on texture_res and sums on a
    GPU differ in their last bits.
    """
    folder = config.run.mesh_path.parent
    try:
        record = json.loads((folder / EXPORT_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    files = [folder / "mesh.obj", folder / "mesh.glb"]
    return record == _export_record(config, step) and all(file.is_file() for file in files)


def _export_record(config: Config, step: int) -> dict[str, object]:
    """Return the step and the digest of the checkpoint.

    The step alone is not sufficient, because a new run in the same folder reaches the same step.
    """
    return {"step": step, "checkpoint_sha256": newest_digest(checkpoint_folder(config))}


def settings(config: Config) -> dict[str, object]:
    """Return the mode's keys except MAY_CHANGE, with their values, which must not change on resuming."""
    unused = unused_keys(config)
    return {
        key: value for key, value in config.to_json().items() if key not in MAY_CHANGE and key not in unused
    }


def unused_keys(config: Config) -> set[str]:
    """Return the keys that do not affect the trained weights in the config's mode."""
    traits = config.run.traits
    unused = set(traits.unused_keys)
    for section in traits.unused_sections:
        unused |= section_keys(section)
    unused -= set(traits.used_keys)
    if not traits.paints_base_mesh:
        unused |= set(DMTET_ONLY if config.surface.keeps_faces else MESH_SURFACE_ONLY)
        unused -= set(MESH_SURFACE_ONLY if config.surface.keeps_faces else ())
    if not config.reads_base_mesh:
        unused |= {"base_mesh", "base_mesh_up", "base_mesh_front"}
    return unused


def latest_checkpoint(config: Config) -> Checkpoint | None:
    """Return the checkpoint to resume from, or None if the run starts from step 1.

    Raises:
        ValueError: if out_dir contains a run with other settings or more steps, or if its checkpoints cannot
            be read.
    """
    checkpoint = load_latest(checkpoint_folder(config))
    if checkpoint is None:
        return None
    now, then = settings(config), checkpoint.meta.get("settings")
    if not isinstance(then, dict):
        raise _foreign(config, checkpoint, "no settings")
    different = [key for key in now if key in then and now[key] != then[key]]
    if different:
        options = " ".join(_option(key, then[key]) for key in different)
        key = different[0]
        raise ValueError(
            f"out_dir = {config.run.out_dir!r}: it holds a run with another {key} ({then[key]!r}, now "
            f"{now[key]!r}); to continue that run, add {options}; for a new run, choose another --out_dir, "
            f"or delete {checkpoint_folder(config)}"
        )
    if checkpoint.step > config.schedule.iter:
        raise ValueError(
            f"iter = {config.schedule.iter}: the run in {config.run.output_folder} has already reached step "
            f"{checkpoint.step}; add --iter {checkpoint.step} to export it, or choose another --out_dir"
        )
    return checkpoint


def has_steps_left(config: Config) -> bool:
    """Return whether the last step has no checkpoint yet, according to the names of the checkpoints.

    A rank that cannot see the folder of rank 0 returns True.
    """
    return (newest_step(checkpoint_folder(config)) or 0) < config.schedule.iter


def _option(key: str, value: object) -> str:
    """Return a config key with its value as a command-line option."""
    words = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"--{key} {shlex.quote(words)}"


def prepare_checkpoint(
    config: Config,
    scene: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    distributed: Distributed = SINGLE_PROCESS,
    *,
    inputs: InputFiles,
    guidance: Guidance | None = None,
) -> Callable[[], None]:
    """Copy all data on which the next step depends. Return a function that atomically writes a checkpoint.

    Only one rank may call this. The copy does not wait for the GPU. The function may be called in a thread
    while the training goes on.

    inputs: the files that the run has read. Their fingerprints are saved in the checkpoint. guidance: if the
    guidance uses VSD, its LoRA and the LoRA's optimizer are also saved.
    """
    tensors, meta = flatten_optimizer(optimizer)
    weights = {f"scene.{name}": value for name, value in scene.state_dict().items()}
    moments = {f"optimizer.{name}": value for name, value in tensors.items()}
    meta = {
        "settings": settings(config),
        "inputs": {**inputs.expected, **inputs.fingerprints},
        "optimizer": meta,
        "shares": [distributed.world_size, config.run.grad_accum],
    }
    if guidance is not None and guidance.lora is not None:
        tensors, meta["lora_optimizer"] = flatten_optimizer(guidance.lora_optimizer)
        weights |= {f"lora.{name}": value for name, value in guidance.lora.trained().items()}
        moments |= {f"lora_optimizer.{name}": value for name, value in tensors.items()}
    copies = {name: _copy(value) for name, value in (weights | moments).items()}

    def write() -> None:
        tensors = {name: copy.read() for name, copy in copies.items()}
        save_checkpoint(checkpoint_folder(config), step, tensors, meta)

    return write


def _copy(tensor: Tensor) -> AsyncCopy:
    """Start a copy of a tensor, which may change afterwards."""
    return AsyncCopy(tensor if tensor.is_cuda else tensor.clone())


def restore_state(
    config: Config,
    scene: nn.Module,
    optimizer: torch.optim.Optimizer,
    distributed: Distributed = SINGLE_PROCESS,
    *,
    inputs: InputFiles,
) -> int:
    """Restore the last checkpoint. Return its step, or 0 if there is no checkpoint.

    Rank 0 reads the checkpoint and sends it to the other ranks, because the other ranks may have no access to
    the disk of rank 0. inputs: the input files, which are compared with the fingerprints in the checkpoint.
    Files that are not read yet are compared when they are read.
    """
    step = _read_state(config, scene, optimizer, distributed, inputs) if distributed.is_main else 0
    return distributed.broadcast_state(scene, optimizer, step)


def _read_state(
    config: Config,
    scene: nn.Module,
    optimizer: torch.optim.Optimizer,
    distributed: Distributed,
    inputs: InputFiles,
) -> int:
    checkpoint = latest_checkpoint(config)
    if checkpoint is None:
        return 0
    recorded = checkpoint.meta.get("inputs", {})
    if not isinstance(recorded, Mapping):
        raise _foreign(config, checkpoint, f"inputs {recorded!r}")
    inputs.expect(recorded, config.run.out_dir)
    try:
        scene.load_state_dict(_part(checkpoint, "scene."))
        restore_optimizer(optimizer, _part(checkpoint, "optimizer."), checkpoint.meta["optimizer"])
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise _foreign(config, checkpoint, error) from error
    logger.info("resuming after step %d from %s", checkpoint.step, checkpoint_folder(config))
    _log_micro_batch_change(config, checkpoint, distributed)
    return checkpoint.step


def restore_lora(config: Config, guidance: Guidance, step: int, distributed: Distributed) -> None:
    """Restore VSD's LoRA from the checkpoint of `step` on every rank. If score is not vsd, do nothing."""
    if guidance.lora is None or step == 0:
        return
    if distributed.is_main:
        checkpoint = latest_checkpoint(config)
        try:
            _load_lora(guidance, checkpoint)
        except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
            raise _foreign(config, checkpoint, error) from error
    trained = torch.nn.ParameterDict(
        {name.replace(".", "/"): parameter for name, parameter in guidance.lora.trained().items()}
    )
    distributed.broadcast_state(trained, guidance.lora_optimizer, step)


def _load_lora(guidance: Guidance, checkpoint: Checkpoint) -> None:
    saved, trained = _part(checkpoint, "lora."), guidance.lora.trained()
    if saved.keys() != trained.keys():
        raise ValueError("it has no LoRA of this rank and model")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])
    moments = _part(checkpoint, "lora_optimizer.")
    restore_optimizer(guidance.lora_optimizer, moments, checkpoint.meta["lora_optimizer"])


def _part(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with a prefix. The keys are the names without the prefix."""
    return {name[len(prefix) :]: t for name, t in checkpoint.tensors.items() if name.startswith(prefix)}


def _foreign(config: Config, checkpoint: Checkpoint, reason: object) -> ValueError:
    detail = " ".join(str(reason).split())[:300]
    return ValueError(
        f"the checkpoint of step {checkpoint.step} in {checkpoint_folder(config)} does not fit this run "
        f"({detail}); choose another --out_dir, or delete this checkpoint to continue from the one before"
    )


def _log_micro_batch_change(config: Config, checkpoint: Checkpoint, distributed: Distributed) -> None:
    """If the number of micro-batches per step has changed, log this and its effect. The change is allowed."""
    then = checkpoint.meta.get("shares", [1, 1])
    if not (isinstance(then, list) and [type(count) for count in then] == [int, int]):
        raise _foreign(config, checkpoint, f"shares {then!r}")
    now = [distributed.world_size, config.run.grad_accum]
    if then == now:
        return
    message = "the checkpoint has processes × grad_accum = %d × %d, this run has %d × %d: "
    if then[0] * then[1] == now[0] * now[1]:
        message += "the views of a step are the same, and sums are rounded differently"
        logger.info(message, *then, *now)
    else:
        message += "a step now has %d views instead of %d, with other cameras and other noise"
        views = (config.run.batch * processes * parts for processes, parts in (now, then))
        logger.warning(message, *then, *now, *views)
