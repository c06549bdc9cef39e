"""Runs the trials of a sweep: checks them all, shares them among GPUs and ranks, and sums up.

The parent only starts, watches and tells: it never makes a context on a GPU itself.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from configs.errors import ConfigError
from configs.schema import Config
from training.launch import LauncherRank, read_launcher_rank
from training.sweep.local_executor import run_locally
from training.sweep.progress import SweepProgress
from training.sweep.ranks import any_failed
from training.sweep.ray_executor import connect, run_on_ray
from training.sweep.trials import Sweep, Trial, is_done

logger = logging.getLogger(__name__)

SOME_FAILED = 1


def run_sweep(sweep: Sweep, check: Callable[[Config], None]) -> int:
    """Every trial that is not done yet; returns the exit code.

    check: raises ValueError or OSError for a config that is known to fail; asked for all before any runs.

    Raises:
        ConfigError: one line; nothing has run.
    """
    rank = read_launcher_rank(os.environ)
    done = {trial.name for trial in sweep.trials if is_done(trial)}
    todo = [trial for trial in rank.select(sweep.trials) if trial.name not in done]
    for trial in todo:
        _check(trial, check)
    on_gpus = any(config.run.device != "cpu" for trial in todo for config in trial.configs)
    executor = _ray(sweep, rank, on_gpus) if sweep.executor == "ray" else _local(sweep, rank, on_gpus)
    with SweepProgress(sweep, done, todo) as progress:
        stopped = executor(todo, progress)
    progress.summary()
    if stopped is not None:
        logger.info("stopped; run the same command again to go on")
        return 128 + stopped
    return SOME_FAILED if any_failed(rank, bool(progress.failed)) else 0


def _local(
    sweep: Sweep, rank: LauncherRank, on_gpus: bool
) -> Callable[[Sequence[Trial], SweepProgress], int | None]:
    visible = visible_gpus(os.environ, torch.cuda.device_count()) if on_gpus else []

    def executor(todo: Sequence[Trial], progress: SweepProgress) -> int | None:
        gpu_slots = gpu_slots_for(sweep.jobs, rank.gpus(visible), len(todo))
        threads = max(1, usable_cores() // (len(gpu_slots) * rank.local_world_size))
        return run_locally(todo, gpu_slots, threads, progress)

    return executor


def _ray(
    sweep: Sweep, rank: LauncherRank, on_gpus: bool
) -> Callable[[Sequence[Trial], SweepProgress], int | None]:
    if rank.world_size > 1:
        raise ConfigError(
            "command line: --executor ray spreads the runs itself; start it once, not by torchrun"
        )
    cluster = connect()
    return lambda todo, progress: run_on_ray(cluster, todo, sweep.jobs, on_gpus, progress)


def _check(trial: Trial, check: Callable[[Config], None]) -> None:
    for config in trial.configs:
        try:
            if config.run.device.startswith("cuda:"):
                raise ConfigError(
                    f"device = {config.run.device!r}: several results are spread over GPUs by themselves; "
                    "say cuda, and name the GPUs in the environment variable CUDA_VISIBLE_DEVICES"
                )
            check(config)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{trial.name}: {error}") from error


def visible_gpus(environment: Mapping[str, str], count: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, of `count` usable GPUs: its parts, or 0 … count - 1."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named is not None else map(str, range(count))
    return [name.strip() for name in names][:count]


def gpu_slots_for(jobs: int | None, gpus: Sequence[str], trials: int) -> list[str | None]:
    """The GPU of each run at a time, in turn; one for each GPU, or one without, where `jobs` is not given.

    Never more than there are trials, and one at least.
    """
    number = max(1, min(jobs or len(gpus) or 1, trials))
    return [gpus[slot % len(gpus)] if gpus else None for slot in range(number)]


def usable_cores() -> int:
    """The cores that this process may use, by its affinity and by its control group's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
