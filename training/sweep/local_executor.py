"""Run several trials at the same time on this machine, each as a process of train.py."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from training.lock import is_locked
from training.signals import SignalRecorder, end_with_parent
from training.sweep.progress import SweepProgress
from training.sweep.trials import CONSOLE_FILE, DONE, FAILED, QUEUED, RUNNING, STOPPED, Record, Trial

PROGRAM = Path(__file__).parents[2] / "train.py"
POLL_SECONDS = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A trial of a killed sweep may still run, because it saves a checkpoint before it exits. A new sweep waits at
# most this many seconds until the folder of such a trial is no longer locked.
LOCK_SECONDS = 120.0

# Variables that torchrun sets for its ranks. They are removed for a trial, because it is a single process.
LAUNCHER_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "GROUP_", "ROLE_")


def child_environment(environment: Mapping[str, str], gpu: str | None, threads: int) -> dict[str, str]:
    """Return the environment variables of a trial's process.

    The variables of the launcher are removed. gpu: the value of CUDA_VISIBLE_DEVICES; None leaves the
    variable unchanged. threads: number of threads, unless OMP_NUM_THREADS is already set.
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
    """A trial's process.

    console: the file to which the output is written. begin: the byte offset in this file at which the output
    of this process begins. started: seconds of time.monotonic().
    """

    trial: Trial
    process: subprocess.Popen
    console: BinaryIO
    begin: int
    started: float


def start(trial: Trial, environment: Mapping[str, str]) -> Running:
    """Start the trial's process in a new process group, so that Ctrl-C is not sent to it directly."""
    console = (trial.folder / CONSOLE_FILE).open("ab")
    begin = console.seek(0, os.SEEK_END)
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *trial.argv],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=end_with_parent,
    )
    return Running(trial, process, console, begin, time.monotonic())


def outcome(run: Running, stopping: bool) -> Record:
    """Return the record of a trial whose process has ended. stopping: whether the sweep received a signal."""
    run.console.close()
    seconds, code = time.monotonic() - run.started, run.process.returncode
    if code == 0:
        return Record(DONE, None, seconds)
    if stopping:
        return Record(STOPPED, None, seconds)
    with (run.trial.folder / CONSOLE_FILE).open("rb") as console:
        console.seek(run.begin)
        output = console.read().decode(errors="replace")
    return Record(FAILED, failure_reason(code, output), seconds)


def failure_reason(code: int, output: str) -> str:
    """Return why a process failed, in one line.

    The reason is the signal that ended the process. Without a signal, it is the last output line that starts
    with "error: ", or, if there is none, the last output line.
    """
    number = -code if code < 0 else code - 128
    if number in set(signal.Signals):
        return f"ended by {signal.Signals(number).name} from outside (too little memory is one reason)"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit code {code}"])[-1]


def run_locally(
    trials: Sequence[Trial], gpu_slots: Sequence[str | None], threads: int, progress: SweepProgress
) -> int | None:
    """Run the trials in order, len(gpu_slots) at a time. Return the signal that stopped the sweep, or None.

    gpu_slots: the GPU of each concurrent run, or None for a run on the CPU. threads: CPU threads of each run.
    """
    waiting, running = list(trials), {}
    lock_deadline = time.monotonic() + LOCK_SECONDS
    with SignalForwarder() as signals:
        while running or (waiting and signals.number is None):
            for slot, gpu in enumerate(gpu_slots):
                trial = None
                if slot not in running and signals.number is None:
                    trial = _next_unlocked(waiting, time.monotonic() > lock_deadline)
                if trial is not None:
                    # The record is written first, because the process removes temporary files in its folder.
                    progress.update(trial, Record(RUNNING))
                    running[slot] = start(trial, child_environment(os.environ, gpu, threads))
            time.sleep(POLL_SECONDS)
            signals.forward_signal(run.process for run in running.values())
            for slot, run in list(running.items()):
                if run.process.poll() is not None:
                    progress.update(run.trial, outcome(run, signals.number is not None))
                    del running[slot]
            progress.refresh()
    for trial in waiting:
        progress.update(trial, Record(QUEUED))
    return signals.number


def _next_unlocked(waiting: list[Trial], late: bool) -> Trial | None:
    """Remove the first trial whose folders are not locked from `waiting` and return it, or return None.

    late: whether the time to wait for locks is over; if true, locks are ignored.
    """
    for number, trial in enumerate(waiting):
        if late or not is_locked(config.run.output_folder for config in trial.configs):
            return waiting.pop(number)
    return None


class SignalForwarder(SignalRecorder):
    """Records SIGINT, SIGTERM and SIGHUP and forwards them to the running trials.

    After the first signal, a trial saves a checkpoint and exits. The second signal kills it.
    """

    def __init__(self) -> None:
        super().__init__(SIGNALS)
        self._forwarded = 0

    def forward_signal(self, processes: Iterable[subprocess.Popen]) -> None:
        """If a signal arrived since the last call, forward it to all processes.

        The second signal is replaced by SIGKILL.
        """
        if self.count == self._forwarded:
            return
        self._forwarded = self.count
        for process in processes:
            process.send_signal(self.number if self.count == 1 else signal.SIGKILL)
