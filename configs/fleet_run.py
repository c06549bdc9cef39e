"""Runs the cells of a fleet as processes of train.py, several at a time, each pinned to a GPU.

The parent only starts, watches and tells: it never touches a GPU itself.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from configs.errors import ConfigError
from configs.fleet import CONSOLE_FILE, DONE, FAILED, QUEUED, RUNNING, STOPPED, Cell, Fleet, Record, is_done
from configs.fleet_board import Board
from configs.schema import Config

logger = logging.getLogger(__name__)

PROGRAM = Path(__file__).parents[1] / "train.py"
POLL_SECONDS = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SOME_FAILED = 1

# What a launcher tells its ranks; a cell's run is no rank of it.
LAUNCHER = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def run_fleet(fleet: Fleet, check: Callable[[Config], None]) -> int:
    """Every cell that is not done yet; returns the exit code.

    check: raises ValueError or OSError for a config that is known to fail; asked for all before any runs.
    """
    done = {cell.name for cell in fleet.cells if is_done(cell)}
    todo = [cell for cell in fleet.cells if cell.name not in done]
    for cell in todo:
        _check(cell, check)
    wanted_gpus = any(config.run.device != "cpu" for cell in todo for config in cell.configs)
    gpus = visible_gpus(os.environ, torch.cuda.device_count()) if wanted_gpus else []
    with Board(fleet, done, todo) as board:
        stopped = run_here(todo, places_for(fleet.jobs, gpus, len(todo)), board)
    board.summary()
    if stopped is not None:
        logger.info("stopped; run the same command again to go on")
        return 128 + stopped
    return SOME_FAILED if board.failed else 0


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
    """What CUDA_VISIBLE_DEVICES may name, of `count` usable GPUs: the parts of it, or 0 … count - 1."""
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


def child_environment(environment: Mapping[str, str], gpu: str | None, threads: int) -> dict[str, str]:
    """The environment of a cell's run: its GPU, its share of the cores, and no launcher."""
    kept = {
        key: value
        for key, value in environment.items()
        if key not in LAUNCHER and not key.startswith("TORCHELASTIC_")
    }
    if gpu is not None:
        kept["CUDA_VISIBLE_DEVICES"] = gpu
    return {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads), **kept}


@dataclass
class Running:
    """A cell's process, and where what it prints begins in the console file."""

    cell: Cell
    process: subprocess.Popen
    console: BinaryIO
    begin: int
    started: float


def start(cell: Cell, environment: Mapping[str, str]) -> Running:
    """The cell's run, in a process group of its own: a Ctrl-C reaches it through us alone."""
    command = [sys.executable, str(PROGRAM), *cell.words]
    console = (cell.folder / CONSOLE_FILE).open("ab")
    begin = console.seek(0, os.SEEK_END)
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    return Running(cell, process, console, begin, time.monotonic())


def outcome(run: Running, stopping: bool) -> Record:
    """The record of a cell whose process has ended."""
    run.console.close()
    seconds, code = time.monotonic() - run.started, run.process.returncode
    if code == 0:
        return Record(DONE, None, seconds)
    if stopping:
        return Record(STOPPED, None, seconds)
    with (run.cell.folder / CONSOLE_FILE).open("rb") as console:
        console.seek(run.begin)
        printed = console.read().decode(errors="replace")
    return Record(FAILED, why(code, printed), seconds)


def why(code: int, printed: str) -> str:
    """The line that tells why a run ended with `code`: its error line, its last line, or the signal."""
    number = -code if code < 0 else code - 128
    if number in set(signal.Signals):
        return f"ended by {signal.Signals(number).name} from outside (too little memory is one reason)"
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines or [f"exit code {code}"])[-1]


def run_here(cells: Sequence[Cell], places: Sequence[str | None], board: Board) -> int | None:
    """The cells in order, as many at a time as there are places; returns the signal that stopped it."""
    threads = max(1, usable_cores() // len(places))
    waiting, running = list(cells), {}
    with Stop() as stop:
        while running or (waiting and stop.number is None):
            for place, gpu in enumerate(places):
                if place not in running and waiting and stop.number is None:
                    cell = waiting.pop(0)
                    running[place] = start(cell, child_environment(os.environ, gpu, threads))
                    board.tell(cell, Record(RUNNING))
            time.sleep(POLL_SECONDS)
            stop.hand_on(running.values())
            for place, run in list(running.items()):
                if run.process.poll() is not None:
                    board.tell(run.cell, outcome(run, stop.number is not None))
                    del running[place]
            board.refresh()
    for cell in waiting:
        board.tell(cell, Record(QUEUED))
    return stop.number


class Stop:
    """Notes SIGINT, SIGTERM and SIGHUP, to be handed on to the running cells; a context manager.

    At the first one they save and leave, at the second one they are ended at once.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._times = self._handed_on = 0

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self._times += 1
        self.number = number

    def hand_on(self, running: Iterable[Running]) -> None:
        """The signals that have come since the last call."""
        if self._times == self._handed_on:
            return
        # train.py knows no SIGHUP: a terminal that was closed shall stop it like any other end.
        first = signal.SIGTERM if self.number == signal.SIGHUP else self.number
        self._handed_on = self._times
        for run in running:
            run.process.send_signal(first if self._times == 1 else signal.SIGKILL)
