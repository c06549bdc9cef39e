"""Run the trials of a sweep as Ray tasks on several machines that share a file system.

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
from training.sweep.local_executor import POLL_SECONDS, SignalForwarder, child_environment, outcome, start
from training.sweep.progress import SweepProgress
from training.sweep.trials import DONE, FAILED, QUEUED, RUNNING, STOPPED, Record, Trial

logger = logging.getLogger(__name__)

RETRIES = 2
# Exit code of a run for an error that the user can fix. A trial with this exit code is not repeated.
USER_ERROR = 2
WAIT_SECONDS = 0.2


class TrialDied(RuntimeError):
    """Raised if a run failed with an error that the user cannot fix.

    Ray then repeats the task, which resumes the run from its checkpoint.
    """


def connect() -> ModuleType:
    """Connect to the Ray cluster of RAY_ADDRESS or to a running one, or start Ray on this machine.

    Raises:
        ConfigError: if Ray is not installed.
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
    """Return the fraction of a GPU for each of `jobs` concurrent runs. Example: 1/8 for 16 runs on 2 GPUs."""
    return 1 / math.ceil(jobs / gpus) if gpus else 0.0


def run_on_ray(
    ray: ModuleType, trials: Sequence[Trial], jobs: int | None, on_gpus: bool, progress: SweepProgress
) -> int | None:
    """Run the trials in order. Return the signal that stopped the sweep, or None.

    jobs: number of concurrent runs. None means one run for each GPU of the cluster, and at least one run.
    """
    found = ray.cluster_resources()
    gpus = found.get("GPU", 0) if on_gpus else 0
    number = max(1, min(jobs or int(gpus) or 1, len(trials)))
    threads = max(1, int(found.get("CPU", 1)) // number)
    task = ray.remote(
        num_cpus=1,
        num_gpus=share_of_gpu(gpus, number),
        max_retries=RETRIES,
        retry_exceptions=[TrialDied],
    )(run_trial)
    waiting, running = list(trials), {}
    with SignalForwarder() as signals:
        while running or (waiting and signals.number is None):
            while waiting and len(running) < number and signals.number is None:
                trial = waiting.pop(0)
                running[task.remote(trial, os.getcwd(), threads)] = trial, time.monotonic()
                progress.update(trial, Record(RUNNING))
            signals.forward_signal([_Task(ray, reference) for reference in running])
            ended, _ = ray.wait(list(running), timeout=WAIT_SECONDS)
            for reference in ended:
                trial, began = running.pop(reference)
                progress.update(trial, _record(ray, reference, began, signals.number is not None))
            progress.refresh()
    for trial in waiting:
        progress.update(trial, Record(QUEUED))
    return signals.number


class _Task:
    """Adapter that gives a Ray task the method `send_signal` of a process."""

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
        message = str(getattr(error, "cause", error)) or type(error).__name__
        return Record(FAILED, message.strip().splitlines()[-1], seconds)


def run_trial(trial: Trial, folder: str, threads: int) -> Record:
    """Run a trial on the machine that Ray selected, and return its record.

    folder: the current directory of the sweep. All paths are relative to it.

    Raises:
        TrialDied: if the process failed with an error that the user cannot fix.
    """
    os.chdir(folder)
    trial.folder.mkdir(parents=True, exist_ok=True)
    # Ray cancels a task with SIGINT. A background worker ignores SIGINT by default, so Python's handler is
    # set here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run = start(trial, child_environment(os.environ, None, threads))
    try:
        # Do not call wait(): Python handles signals between two bytecodes, so wait() would delay the
        # interrupt.
        while run.process.poll() is None:
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        # Send SIGTERM instead of SIGINT, because Ray's workers and their child processes block SIGINT.
        run.process.send_signal(signal.SIGTERM)
        run.process.wait()
    record = outcome(run, stopping=False)
    if record.state != DONE and run.process.returncode != USER_ERROR:
        raise TrialDied(record.error)
    return record
