"""How much memory a run takes, and memory that runs out, as one line that says what to lower."""

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from configs.schema import Config
from training.checkpoint import load_latest
from training.resume import checkpoint_folder

# How allocators other than torch's own on CUDA word it: cuBLAS, the driver, nvdiffrast (2 is the driver's
# number for it), torch's on the CPU.
WORDINGS = ("CUBLAS_STATUS_ALLOC_FAILED", "out of memory", "Cuda error: 2[", "DefaultCPUAllocator")


class OutOfMemory(ValueError):
    """What a run asked for does not fit."""


def peak_memory() -> str:
    """The most that this process has held so far; on a GPU, what torch has taken of it since its last reset,
    the memory of CUDA graphs included."""
    # Linux counts in kibibytes.
    peak = f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.1f} GB"
    if torch.cuda.is_initialized():
        peak += f", on the GPU {torch.cuda.max_memory_reserved() / 1e9:.1f} GB"
    return peak


@contextmanager
def explain_out_of_memory(config: Config) -> Iterator[None]:
    """Turns every kind of memory error within into `OutOfMemory`, which names the keys and what is kept."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The error holds the frames, and they the tensors: let go before the checkpoint is read.
        message = f"out of memory{_amount(error)}"
        error.__traceback__ = None
    else:
        return
    raise OutOfMemory(f"{message}: {_advice(config)}; {_kept(config)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on a GPU or for a CPU."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(wording in str(error) for wording in WORDINGS)


def _amount(error: BaseException) -> str:
    tried = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
    return f" (tried to allocate {tried[1]})" if tried else ""


def _advice(config: Config) -> str:
    values = config.to_json()
    keys = ["batch", "train_res", *config.run.traits.memory_keys]
    lower = ", ".join(f"{key} ({values[key]})" for key in keys)
    spare = "set low_memory, or " if values.get("low_memory") is False else ""
    return f"{spare}lower one of {lower}, in another out_dir"


def _kept(config: Config) -> str:
    kept = load_latest(checkpoint_folder(config))
    return (
        f"the checkpoint of step {kept.step} is kept in {checkpoint_folder(config)}"
        if kept
        else "nothing was saved yet"
    )
