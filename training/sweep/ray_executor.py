"""Hands the trials of a sweep to Ray, for several machines that share a file system; one trial a task.

Every machine needs the repository, the current directory and the Python environment at the same paths.
"""

import logging
import math
import os
import signal
import time
from collections.abc import Sequence
from types import ModuleType

from configs.errors import ConfigError
from training.sweep.local_executor import POLL_SECONDS, Stop, child_environment, outcome, start
from training.sweep.progress import SweepProgress
from training.sweep.trials import DONE, FAILED, QUEUED, RUNNING, STOPPED, Record, Trial

logger = logging.getLogger(__name__)

RETRIES = 2
# The user can mend it: the same again would end the same way.
USER_ERROR = 2
WAIT_SECONDS = 0.2


class TrialDied(RuntimeError):
    """A run ended by no fault of its settings; Ray tries it again, and it goes on after its checkpoint."""


def connect() -> ModuleType:
    """Ray, connected to the cluster that RAY_ADDRESS names or that runs here, else started on this machine.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "command line: --executor ray needs the package ray, which is not installed; pip install ray, or "
            "leave --executor out to run on this machine"
        ) from None
    ray.init(log_to_driver=False, logging_level=logging.WARNING, ignore_reinit_error=True)
    return ray


def share_of_gpu(gpus: float, jobs: int) -> float:
    """The part of a GPU that each of `jobs` runs gets: 8 on each of 2 GPUs get an eighth."""
    return 1 / math.ceil(jobs / gpus) if gpus else 0.0


def run_on_ray(
    ray: ModuleType, trials: Sequence[Trial], jobs: int | None, on_gpus: bool, progress: SweepProgress
) -> int | None:
    """The trials in order, `jobs` at a time (one for each of the cluster's GPUs, or one); returns the signal
    that stopped it."""
    found = ray.cluster_resources()
    gpus = found.get("GPU", 0) if on_gpus else 0
    number = max(1, min(jobs or int(gpus) or 1, len(trials)))
    threads = max(1, int(found.get("CPU", 1)) // number)
    task = ray.remote(
        num_cpus=1,
        num_gpus=share_of_gpu(gpus, number),
        max_retries=RETRIES,
        retry_exceptions=[TrialDied],
    )(attempt)
    waiting, running = list(trials), {}
    with Stop() as stop:
        while running or (waiting and stop.number is None):
            while waiting and len(running) < number and stop.number is None:
                trial = waiting.pop(0)
                running[task.remote(trial, os.getcwd(), threads)] = trial, time.monotonic()
                progress.update(trial, Record(RUNNING))
            stop.forward([_Task(ray, reference) for reference in running])
            ended, _ = ray.wait(list(running), timeout=WAIT_SECONDS)
            for reference in ended:
                trial, began = running.pop(reference)
                progress.update(trial, _record(ray, reference, began, stop.number is not None))
            progress.refresh()
    for trial in waiting:
        progress.update(trial, Record(QUEUED))
    return stop.number


class _Task:
    """A task that takes a signal as a process does."""

    def __init__(self, ray: ModuleType, reference: object) -> None:
        self._ray, self._reference = ray, reference

    def send_signal(self, number: int) -> None:
        self._ray.cancel(self._reference, force=number == signal.SIGKILL)


def _record(ray: ModuleType, reference: object, began: float, stopping: bool) -> Record:
    try:
        return ray.get(reference)
    except (ray.exceptions.RayError, TrialDied) as error:
        seconds = time.monotonic() - began
        if stopping:
            return Record(STOPPED, None, seconds)
        told = str(getattr(error, "cause", error)) or type(error).__name__
        return Record(FAILED, told.strip().splitlines()[-1], seconds)


def attempt(trial: Trial, folder: str, threads: int) -> Record:
    """The trial's run on the machine that Ray chose; in `folder`, as all paths are relative to it.

    Raises:
        TrialDied: it ended by no fault of its settings.
    """
    os.chdir(folder)
    trial.folder.mkdir(parents=True, exist_ok=True)
    # Ray cancels a task by this signal, which a worker that began in the background ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run = start(trial, child_environment(os.environ, None, threads))
    try:
        # Not wait(): the interrupt comes only between two of Python's steps.
        while run.process.poll() is None:
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        # Not SIGINT: Ray's workers block it, and so do the processes that they start.
        run.process.send_signal(signal.SIGTERM)
        run.process.wait()
    record = outcome(run, stopping=False)
    if record.state != DONE and run.process.returncode != USER_ERROR:
        raise TrialDied(record.error)
    return record
