"""Atomic checkpoints: folder/step_000123/ with tensors.safetensors and state.json, no pickle.

A checkpoint is written to a hidden folder, flushed to disk and then renamed. state.json contains the size and
the SHA-256 of the tensor file, and a SHA-256 of its own values. If a checkpoint is damaged, the previous one
is used. If a checkpoint cannot be read or has another format version, an error is raised: the checkpoint may
be intact, and the next save would delete it.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.file_hash import sha256_of_file

logger = logging.getLogger(__name__)

FORMAT, VERSION = "fantasia3d-checkpoint", 1
TENSORS, STATE = "tensors.safetensors", "state.json"
_NAME = re.compile(r"step_(\d{6,})")
_TEMPORARY = ".writing_"


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps: named tensors on the CPU, and JSON values."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


class DamagedCheckpoint(ValueError):
    """Raised if the files of a checkpoint are incomplete or have been changed."""


class UnreadableCheckpoint(ValueError):
    """Raised if checkpoints exist but none can be used.

    The checkpoints may be intact, so the run must not start from step 1 and replace them.
    """


def save_checkpoint(
    folder: Path | str, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write the checkpoint folder/step_000123 and return its path. Keep only the newest `keep` checkpoints.

    Checkpoints of later steps are also removed, because they belong to an earlier run that this run replaces.
    meta: JSON values.

    Raises:
        OSError: if the disk is full or not writable. The message is one line. Older checkpoints are kept.
        ValueError: if a tensor contains NaN or infinity. Nothing is written.
    """
    folder = Path(folder)
    if name := _non_finite(tensors):
        raise ValueError(
            f"step {step}: {name} contains NaN or infinity, so no checkpoint is written to {folder}; "
            "older ones are kept; try a lower guidance_weight or learning_rate"
        )
    final, temporary = folder / f"step_{step:06d}", folder / f"{_TEMPORARY}step_{step:06d}"
    try:
        _remove_leftovers(folder)
        temporary.mkdir(parents=True)
        _write(temporary, step, tensors, meta)
        if final.exists():
            # Move the old folder first: a folder cannot be renamed to an existing folder that is not empty.
            final.rename(folder / f"{_TEMPORARY}replaced_{final.name}")
        temporary.rename(final)
        _flush(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(_write_failure(folder, step, error)) from error
    _remove_leftovers(folder)
    numbered = _numbered(folder)
    for other in [s for s in numbered if s > step] + [s for s in numbered if s <= step][:-keep]:
        shutil.rmtree(numbered[other])
    return final


def load_latest(folder: Path | str) -> Checkpoint | None:
    """Return the newest intact checkpoint, or None if no checkpoint exists. Warn about damaged ones.

    Raises:
        UnreadableCheckpoint: if a checkpoint cannot be read or has another format version, or if none is
            intact.
    """
    numbered = _numbered(Path(folder))
    reasons = []
    for step in sorted(numbered, reverse=True):
        try:
            return _read(numbered[step], step)
        except DamagedCheckpoint as error:
            reasons.append(error)
        except OSError as error:
            raise UnreadableCheckpoint(
                f"checkpoint {numbered[step]} cannot be read: {error.strerror or error}; nothing was deleted"
            ) from error
        if len(reasons) < len(numbered):
            logger.warning("warning: a damaged checkpoint is skipped: %s", reasons[-1])
    if reasons:
        raise UnreadableCheckpoint(
            f"none of the {len(reasons)} checkpoints in {folder} is intact: {reasons[0]}; nothing was "
            "deleted; restore one, or choose another out_dir"
        )
    return None


def newest_step(folder: Path | str) -> int | None:
    """Return the step in the name of the newest checkpoint's folder, or None if there is no checkpoint."""
    return max(_numbered(Path(folder)), default=None)


def newest_digest(folder: Path | str) -> str | None:
    """Return the newest tensor file's SHA-256 from state.json, or None if state.json cannot be read."""
    numbered = _numbered(Path(folder))
    try:
        state = json.loads((numbered[max(numbered)] / STATE).read_text(encoding="utf-8"))
        return str(state["tensors"]["sha256"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimizer's tensors, named "<parameter index>.<name>", and its parameter groups as JSON."""
    state = optimizer.state_dict()
    tensors = {}
    for number, entries in state["state"].items():
        for name, value in entries.items():
            assert isinstance(value, Tensor), f"optimizer state {name} is no tensor"
            tensors[f"{number}.{name}"] = value.detach()
    return tensors, {"param_groups": state["param_groups"]}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Restore an optimizer from the result of flatten_optimizer. All values are restored exactly.

    Raises:
        ValueError: if the number or the shapes of the parameters differ from the saved ones.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value.clone()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entries in state.items():
        for name, value in entries.items():
            fits = number < len(parameters) and (name == "step" or value.shape == parameters[number].shape)
            if not fits:
                raise ValueError(
                    f"the checkpoint's optimizer state {number}.{name} {tuple(value.shape)} does not"
                    " fit the model; delete the checkpoint folder to start afresh"
                )
    if len(meta["param_groups"]) != len(optimizer.param_groups):
        raise ValueError("the checkpoint's optimizer has another number of parameter groups than this run's")
    groups = [
        {
            # JSON stores tuples (such as betas) as lists. Convert them back.
            key: tuple(value) if isinstance(now.get(key), tuple) else value
            for key, value in saved.items()
        }
        for saved, now in zip(meta["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _write(folder: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    path = folder / TENSORS
    _save(path, tensors)
    # Hashing takes as long as writing to disk, so both run at the same time.
    with ThreadPoolExecutor(1, "checksum") as pool:
        digest = pool.submit(sha256_of_file, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    state = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "tensors": {"bytes": path.stat().st_size, "sha256": digest.result()},
        "meta": dict(meta),
    }
    state["sha256"] = _digest(state)
    _write_through(folder / STATE, json.dumps(state, indent=1).encode("utf-8"))
    _flush(folder)


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors directly to disk. Serialising to memory first would take three times as long."""
    try:
        save_file(_unshared(tensors), path)
    except SafetensorError as error:
        # safetensors has no exception type for disk errors, so the error number is read from the message.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU and contiguous.

    A tensor that shares its storage with an earlier one is copied, because safetensors rejects it.
    """
    result, storages = {}, set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in storages:
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        result[name] = value
    return result


def _read(folder: Path, step: int) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        DamagedCheckpoint: if the checkpoint is damaged. The message contains the file and the damage.
        UnreadableCheckpoint: if the checkpoint has another format version.
        OSError: if a file exists but cannot be read.
    """
    path = folder / TENSORS
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{folder / STATE} is missing") from None
    except (ValueError, RecursionError):
        raise DamagedCheckpoint(f"{folder / STATE} is not valid JSON") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DamagedCheckpoint(f"{folder / STATE} is not a checkpoint of this program")
    if type(version := state.get("version")) is int and version != VERSION:
        raise UnreadableCheckpoint(
            f"{folder / STATE} has format version {version}, this program reads version {VERSION}; nothing "
            "was deleted; resume with the program that wrote it, or choose another out_dir"
        )
    if state.get("version") != VERSION or state.get("step") != step:
        raise DamagedCheckpoint(f"{folder / STATE} is of version {version!r} and step {state.get('step')!r}")
    expected, meta = state.get("tensors"), state.get("meta")
    # A missing digest is accepted, because the program wrote the first checkpoints of this format version
    # without a digest of state.json.
    signed = "sha256" in state
    digest = state.pop("sha256", None)
    if (signed and digest != _digest(state)) or not (isinstance(expected, dict) and isinstance(meta, dict)):
        raise DamagedCheckpoint(f"{folder / STATE} is damaged (its own SHA-256 differs)")
    if not path.is_file():
        raise DamagedCheckpoint(f"{path} is missing")
    if path.stat().st_size != expected.get("bytes"):
        raise DamagedCheckpoint(f"{path} has {path.stat().st_size} bytes instead of {expected.get('bytes')}")
    if sha256_of_file(path) != expected.get("sha256"):
        raise DamagedCheckpoint(f"{path} is damaged (its SHA-256 differs)")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{path} is not a safetensors file: {error}") from None
    if name := _non_finite(tensors):
        raise DamagedCheckpoint(f"{path}: {name} contains NaN or infinity")
    return Checkpoint(step, tensors, meta)


def _non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that contains NaN or infinity, or None."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def _numbered(folder: Path) -> dict[int, Path]:
    """Return a dict from step to checkpoint folder, in ascending order."""
    if not folder.is_dir():
        return {}
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def _remove_leftovers(folder: Path) -> None:
    """Remove the hidden folders of interrupted saves."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)


def _write_failure(folder: Path, step: int, error: OSError) -> str:
    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    older = list(_numbered(folder).values())
    rest = (
        f"{older[-1]} is intact, run the same command again to resume" if older else "none was written before"
    )
    return f"cannot write the checkpoint of step {step} to {folder}: {reason}; {rest}"


def _digest(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the values, independent of their order and spacing in the file."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode("utf-8")).hexdigest()


def _write_through(path: Path, content: bytes) -> None:
    """Write a file and flush it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Flush the directory entries of a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
