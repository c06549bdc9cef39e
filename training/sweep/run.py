"""Run the trials of a sweep: check all configs, assign trials to GPUs and ranks, log a summary.

This process only starts and monitors other processes. It never creates a CUDA context, which would take GPU
memory from the trials.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import torch

from configs.errors import ConfigError
from configs.schema import Config
from training.launch import LauncherRank, read_launcher_rank
from training.lock import lock_folder
from training.sweep.local_executor import run_locally
from training.sweep.progress import SweepProgress
from training.sweep.ray_executor import connect, run_on_ray
from training.sweep.trials import Sweep, Trial, is_done

logger = logging.getLogger(__name__)

SOME_FAILED = 1
# Name of the lock file of each rank of a sweep, in the common folder of the trials.
SWEEP_LOCK = ".sweep-{rank}.lock"
# A rank that has finished waits for the others, so the timeout must be longer than the longest sweep. It
# cannot exceed about 24 days, because torch.distributed keeps timeouts as 32-bit milliseconds.
RANK_TIMEOUT = timedelta(days=14)


def run_sweep(sweep: Sweep, check: Callable[[Config], None]) -> int:
    """Run every trial that is not done yet, and return the exit code.

    check: function that raises ValueError or OSError for a config that would fail. All configs are checked
    before the first trial runs.

    Raises:
        ValueError: if another process runs the same sweep, or if a config fails its check. The message is one
            line. No trial is run in this case.
    """
    rank = read_launcher_rank(os.environ)
    label = f"out_dir = {str(sweep.folder)!r}"
    with lock_folder(sweep.folder, label, SWEEP_LOCK.format(rank=rank.rank)):
        return _run_locked(sweep, rank, check)


def _run_locked(sweep: Sweep, rank: LauncherRank, check: Callable[[Config], None]) -> int:
    done = {trial.name for trial in sweep.trials if is_done(trial)}
    todo = [trial for trial in rank.select(sweep.trials) if trial.name not in done]
    for trial in todo:
        _check(trial, check)
    on_gpus = any(config.run.device != "cpu" for trial in todo for config in trial.configs)
    executor = _ray(sweep, rank, on_gpus) if sweep.executor == "ray" else _local(sweep, rank, on_gpus)
    with SweepProgress(sweep, done, todo) as progress:
        stopped = executor(todo, progress)
    progress.log_summary()
    if stopped is not None:
        logger.info("stopped; run the same command again to resume")
        return 128 + stopped
    return SOME_FAILED if any_rank_failed(rank, bool(progress.failed)) else 0


def any_rank_failed(rank: LauncherRank, failed: bool) -> bool:
    """Wait for all ranks. Return whether a trial of any rank failed.

    The launcher ends all ranks as soon as one rank exits with an error. Therefore each rank waits here until
    all ranks have finished.
    """
    if rank.world_size == 1 or "MASTER_ADDR" not in os.environ:
        return failed
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=RANK_TIMEOUT)
    count = torch.tensor(int(failed))
    dist.all_reduce(count)
    dist.destroy_process_group()
    return bool(count)


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
            "command line: --executor ray starts its own workers; start it once, without torchrun"
        )
    cluster = connect()
    return lambda todo, progress: run_on_ray(cluster, todo, sweep.jobs, on_gpus, progress)


def _check(trial: Trial, check: Callable[[Config], None]) -> None:
    for config in trial.configs:
        try:
            if config.run.device.startswith("cuda:"):
                raise ConfigError(
                    f"device = {config.run.device!r}: a sweep assigns GPUs to its runs; use --device cuda, "
                    "and select the GPUs with the environment variable CUDA_VISIBLE_DEVICES"
                )
            check(config)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{trial.name}: {error}") from error


def visible_gpus(environment: Mapping[str, str], count: int) -> list[str]:
    """Return the names of `count` usable GPUs.

    These are the entries of CUDA_VISIBLE_DEVICES, or 0 … count − 1 if this variable is not set.
    """
    value = environment.get("CUDA_VISIBLE_DEVICES")
    names = value.split(",") if value is not None else map(str, range(count))
    return [name.strip() for name in names][:count]


def gpu_slots_for(jobs: int | None, gpus: Sequence[str], trials: int) -> list[str | None]:
    """Return the GPU of each concurrent run. GPUs are assigned cyclically; without GPUs each entry is None.

    jobs: number of concurrent runs. None means one run for each GPU, and at least one run. The number of runs
    is at most the number of trials.
    """
    number = max(1, min(jobs or len(gpus) or 1, trials))
    return [gpus[slot % len(gpus)] if gpus else None for slot in range(number)]


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use: its affinity, limited by its cgroup quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
