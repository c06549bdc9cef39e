"""A trial as a process of train.py: its environment, its end, and several at a time on this machine."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from training.signals import SignalRecorder
from training.sweep.progress import SweepProgress
from training.sweep.trials import CONSOLE_FILE, DONE, FAILED, QUEUED, RUNNING, STOPPED, Record, Trial

PROGRAM = Path(__file__).parents[2] / "train.py"
POLL_SECONDS = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
# Looked up here: between fork and exec the loader's lock may be held by a thread that is not there any more.
PRCTL = ctypes.CDLL(None).prctl

# What torchrun tells its ranks; a trial's run is no rank of it.
LAUNCHER_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "GROUP_", "ROLE_")


def child_environment(environment: Mapping[str, str], gpu: str | None, threads: int) -> dict[str, str]:
    """The environment of a trial's run: its GPU, its share of the cores, and no launcher.

    gpu: what CUDA_VISIBLE_DEVICES shall be, None to leave it. Thread counts that are set already are kept.
    """
    kept = {
        key: value
        for key, value in environment.items()
        if key not in LAUNCHER_VARIABLES and not key.startswith(LAUNCHER_PREFIXES)
    }
    if gpu is not None:
        kept["CUDA_VISIBLE_DEVICES"] = gpu
    threads_of_pools = kept.get("OMP_NUM_THREADS", str(threads))
    return {"OMP_NUM_THREADS": threads_of_pools, "NUMBA_NUM_THREADS": threads_of_pools, **kept}


@dataclass(frozen=True)
class Running:
    """A trial's process, and where in the console file what it prints begins."""

    trial: Trial
    process: subprocess.Popen
    console: BinaryIO
    begin: int
    started: float


def start(trial: Trial, environment: Mapping[str, str]) -> Running:
    """The trial's run, in a process group of its own: a Ctrl-C reaches it through us alone."""
    console = (trial.folder / CONSOLE_FILE).open("ab")
    begin = console.seek(0, os.SEEK_END)
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *trial.words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=_end_with_parent,
    )
    return Running(trial, process, console, begin, time.monotonic())


def _end_with_parent() -> None:
    """Without its parent, a run would go on in a folder that the next command takes for its own."""
    PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


def outcome(run: Running, stopping: bool) -> Record:
    """The record of a trial whose process has ended."""
    run.console.close()
    seconds, code = time.monotonic() - run.started, run.process.returncode
    if code == 0:
        return Record(DONE, None, seconds)
    if stopping:
        return Record(STOPPED, None, seconds)
    with (run.trial.folder / CONSOLE_FILE).open("rb") as console:
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


def run_locally(
    trials: Sequence[Trial], gpu_slots: Sequence[str | None], threads: int, progress: SweepProgress
) -> int | None:
    """The trials in order, as many at a time as there are gpu_slots; returns the signal that stopped it.

    gpu_slots: the GPU of each run at a time. threads: for each of them.
    """
    waiting, running = list(trials), {}
    with Stop() as stop:
        while running or (waiting and stop.number is None):
            for slot, gpu in enumerate(gpu_slots):
                if slot not in running and waiting and stop.number is None:
                    trial = waiting.pop(0)
                    running[slot] = start(trial, child_environment(os.environ, gpu, threads))
                    progress.update(trial, Record(RUNNING))
            time.sleep(POLL_SECONDS)
            stop.forward(run.process for run in running.values())
            for slot, run in list(running.items()):
                if run.process.poll() is not None:
                    progress.update(run.trial, outcome(run, stop.number is not None))
                    del running[slot]
            progress.refresh()
    for trial in waiting:
        progress.update(trial, Record(QUEUED))
    return stop.number


class Stop(SignalRecorder):
    """SIGINT, SIGTERM and SIGHUP are noted, to be handed on to the running trials.

    At the first one they save and leave, at the second one they are ended at once.
    """

    def __init__(self) -> None:
        super().__init__(SIGNALS)
        self._forwarded = 0

    def forward(self, processes: Iterable[subprocess.Popen]) -> None:
        """The signals that have come since the last call."""
        if self.times == self._forwarded:
            return
        self._forwarded = self.times
        # train.py knows no SIGHUP: a terminal that was closed shall stop it like any other end.
        first = signal.SIGTERM if self.number == signal.SIGHUP else self.number
        for process in processes:
            process.send_signal(first if self.times == 1 else signal.SIGKILL)
