"""Runs the cells of a fleet: checks them all, shares them among GPUs and ranks, and sums up.

The parent only starts, watches and tells: it never makes a context on a GPU itself.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from configs.errors import ConfigError
from configs.fleet.board import Board
from configs.fleet.cells import Cell, Fleet, is_done
from configs.fleet.process import run_here
from configs.fleet.ranks import any_failed
from configs.fleet.ray_engine import connect, run_on_ray
from configs.launcher import Rank, launched
from configs.schema import Config

logger = logging.getLogger(__name__)

SOME_FAILED = 1


def run_fleet(fleet: Fleet, check: Callable[[Config], None]) -> int:
    """Every cell that is not done yet; returns the exit code.

    check: raises ValueError or OSError for a config that is known to fail; asked for all before any runs.

    Raises:
        ConfigError: one line; nothing has run.
    """
    rank = launched(os.environ)
    done = {cell.name for cell in fleet.cells if is_done(cell)}
    todo = [cell for cell in rank.share(fleet.cells) if cell.name not in done]
    for cell in todo:
        _check(cell, check)
    on_gpus = any(config.run.device != "cpu" for cell in todo for config in cell.configs)
    engine = _ray(fleet, rank, on_gpus) if fleet.engine == "ray" else _local(fleet, rank, on_gpus)
    with Board(fleet, done, todo) as board:
        stopped = engine(todo, board)
    board.summary()
    if stopped is not None:
        logger.info("stopped; run the same command again to go on")
        return 128 + stopped
    return SOME_FAILED if any_failed(rank, bool(board.failed)) else 0


def _local(fleet: Fleet, rank: Rank, on_gpus: bool) -> Callable[[Sequence[Cell], Board], int | None]:
    visible = visible_gpus(os.environ, torch.cuda.device_count()) if on_gpus else []

    def engine(todo: Sequence[Cell], board: Board) -> int | None:
        places = places_for(fleet.jobs, rank.gpus(visible), len(todo))
        threads = max(1, usable_cores() // (len(places) * rank.local_world))
        return run_here(todo, places, threads, board)

    return engine


def _ray(fleet: Fleet, rank: Rank, on_gpus: bool) -> Callable[[Sequence[Cell], Board], int | None]:
    if rank.world > 1:
        raise ConfigError(
            "command line: --engine ray spreads the runs itself; start it once, not by torchrun"
        )
    cluster = connect()
    return lambda todo, board: run_on_ray(cluster, todo, fleet.jobs, on_gpus, board)


def _check(cell: Cell, check: Callable[[Config], None]) -> None:
    for config in cell.configs:
        try:
            if config.run.device.startswith("cuda:"):
                raise ConfigError(
                    f"device = {config.run.device!r}: several results are spread over GPUs by themselves; "
                    "say cuda, and name the GPUs in the environment variable CUDA_VISIBLE_DEVICES"
                )
            check(config)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{cell.name}: {error}") from error


def visible_gpus(environment: Mapping[str, str], count: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, of `count` usable GPUs: its parts, or 0 … count - 1."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named is not None else map(str, range(count))
    return [name.strip() for name in names][:count]


def places_for(jobs: int | None, gpus: Sequence[str], cells: int) -> list[str | None]:
    """The GPU of each run at a time, in turn; one for each GPU, or one without, where `jobs` is not given.

    Never more than there are cells, and one at least.
    """
    number = max(1, min(jobs or len(gpus) or 1, cells))
    return [gpus[place % len(gpus)] if gpus else None for place in range(number)]


def usable_cores() -> int:
    """The cores that this process may use, by its affinity and by its control group's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
