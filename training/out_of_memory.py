"""Peak memory and out-of-memory errors. The error message is one line with the config keys to reduce."""

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from configs.schema import Config
from training.checkpoint import newest_step
from training.resume import checkpoint_folder, unused_keys

# Parts of the out-of-memory messages of allocators that have no exception type for this error: cuBLAS, the
# driver, nvdiffrast (error 2 of the driver) and torch on the CPU.
WORDINGS = ("CUBLAS_STATUS_ALLOC_FAILED", "out of memory", "Cuda error: 2[", "DefaultCPUAllocator")


class OutOfMemory(ValueError):
    """Raised if the run needs more memory than the machine has."""


def peak_memory() -> str:
    """Return the peak memory of this process as text.

    On a GPU, the text also contains torch's peak of GPU memory since the last reset, including CUDA graphs.
    """
    # Linux reports ru_maxrss in kibibytes.
    peak = f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.1f} GB"
    if torch.cuda.is_initialized():
        peak += f", on the GPU {torch.cuda.max_memory_reserved() / 1e9:.1f} GB"
    return peak


@contextmanager
def explain_out_of_memory(config: Config) -> Iterator[None]:
    """Convert memory errors in the block to `OutOfMemory`.

    The message contains the config keys to reduce and the last checkpoint.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The traceback references the frames and their tensors. Deleting it frees the tensors.
        message = f"out of memory{_amount(error)}"
        error.__traceback__ = None
    else:
        return
    raise OutOfMemory(f"{message}: {_advice(config)}; {_kept(config)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that GPU memory or main memory was exhausted."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(wording in str(error) for wording in WORDINGS)


def _amount(error: BaseException) -> str:
    tried = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
    return f" (tried to allocate {tried[1]})" if tried else ""


def _advice(config: Config) -> str:
    values = config.to_json()
    unused = unused_keys(config)
    keys = ["batch", "train_res", *(key for key in config.run.traits.memory_keys if key not in unused)]
    lower = ", ".join(f"{key} ({values[key]})" for key in keys)
    spare = "set low_memory, or " if values.get("low_memory") is False else ""
    return f"{spare}lower one of {lower}, in another out_dir"


def _kept(config: Config) -> str:
    step, folder = newest_step(checkpoint_folder(config)), checkpoint_folder(config)
    return "nothing was saved yet" if step is None else f"the checkpoint of step {step} is kept in {folder}"
