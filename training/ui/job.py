"""The run that was started from the page. It is a child process of the server; only one can run at a time."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from training.signals import end_with_parent
from training.sweep.local_executor import PROGRAM, failure_reason
from training.sweep.trials import DONE, FAILED, RUNNING, STOPPED

STOPPING = "stopping"
CONSOLE_FILE = "console.log"
CONSOLE_BYTES = 16_000


class BusyError(ValueError):
    """Raised if a run cannot be started because another run is in progress."""


@dataclass
class Job:
    """A run and its process.

    argv: the arguments of train.py. title: the prompt. folders: the out_dir of each config, in order.
    console: the file to which the output is written. begin: byte offset in this file at which the output of
    this process begins.
    """

    argv: tuple[str, ...]
    title: str
    folders: tuple[Path, ...]
    console: Path
    begin: int = 0
    started: float = field(default_factory=time.time)
    process: subprocess.Popen | None = None
    stops: int = 0

    @property
    def state(self) -> str:
        """The state of the run: running, stopping, done, stopped or failed."""
        code = self.process.poll()
        if code is None:
            return STOPPING if self.stops else RUNNING
        if code == 0:
            return DONE
        return STOPPED if self.stops else FAILED

    @property
    def active(self) -> bool:
        """Whether the process is running."""
        return self.process.poll() is None

    @property
    def reason(self) -> str:
        """The reason of a failure in one line, or "" if the run has not failed."""
        return failure_reason(self.process.returncode, self.output()) if self.state == FAILED else ""

    def output(self) -> str:
        """Return the end of the process's output, at most CONSOLE_BYTES bytes."""
        try:
            with self.console.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self.begin, end - CONSOLE_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""


class JobRunner:
    """Start and stop jobs, one at a time. The methods may be called from any thread."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self._lock = threading.Lock()
        # All jobs are started from one thread, because Linux sends the parent-death signal to a child when
        # the thread that started the child ends. This thread exists as long as the JobRunner.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="job-starter")

    def start(self, argv: Sequence[str], title: str, folders: Sequence[Path], console: Path) -> Job:
        """Start `train.py argv` in the current directory and return the new job.

        Raises:
            BusyError: if the previous job is still running.
            OSError: if the console file cannot be written.
        """
        with self._lock:
            if self.job is not None and self.job.active:
                raise BusyError(f"a run is in progress: {self.job.title}; stop it first")
            job = Job(tuple(argv), title, tuple(folders), console)
            job.process = self._starter.submit(_start, job).result()
            self.job = job
            return job

    def stop(self) -> None:
        """Send SIGINT to the job, which then saves a checkpoint and exits. The second call kills the job."""
        with self._lock:
            if self.job is not None and self.job.active:
                self.job.stops += 1
                self.job.process.send_signal(signal.SIGINT if self.job.stops == 1 else signal.SIGKILL)

    def close(self, patience: float = 60.0) -> None:
        """Stop the job and wait until it has saved its checkpoint. After `patience` seconds, kill the job."""
        if self.job is not None and self.job.active:
            if not self.job.stops:
                self.stop()
            try:
                self.job.process.wait(patience)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self.job.process.kill()
                self.job.process.wait()
        self._starter.shutdown(wait=False)


def _start(job: Job) -> subprocess.Popen:
    job.console.parent.mkdir(parents=True, exist_ok=True)
    with job.console.open("ab") as console:
        job.begin = console.seek(0, os.SEEK_END)
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), *job.argv],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=_in_child,
        )


def _in_child() -> None:
    # If the server was started in the background, it ignores SIGINT. A child process inherits this setting,
    # so it is reset here.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()
