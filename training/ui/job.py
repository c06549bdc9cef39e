"""The run that the page has started: a child process of train.py, one at a time."""

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
    """A run is in progress, so another one cannot start."""


@dataclass
class Job:
    """A run and its process.

    argv: the arguments of train.py. title: the text. folders: the out_dir of each config, in order. console:
    the file that receives the output. begin: where this process's output begins in it.
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
        """running, stopping, done, stopped or failed."""
        code = self.process.poll()
        if code is None:
            return STOPPING if self.stops else RUNNING
        if code == 0:
            return DONE
        return STOPPED if self.stops else FAILED

    @property
    def active(self) -> bool:
        """Whether the process is alive."""
        return self.process.poll() is None

    @property
    def reason(self) -> str:
        """Why the run has failed, in one line; "" if it has not."""
        return failure_reason(self.process.returncode, self.output()) if self.state == FAILED else ""

    def output(self) -> str:
        """The end of what the process has written."""
        try:
            with self.console.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self.begin, end - CONSOLE_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""


class JobRunner:
    """Starts and stops one job at a time. The methods may be called from any thread."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self._lock = threading.Lock()
        # The system signals a child when the thread that started it ends. This thread lasts as long as self.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="job-starter")

    def start(self, argv: Sequence[str], title: str, folders: Sequence[Path], console: Path) -> Job:
        """Start `train.py argv` in the current directory; returns the new job.

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
        """Ask the job to save a checkpoint and exit. The second call kills it."""
        with self._lock:
            if self.job is not None and self.job.active:
                self.job.stops += 1
                self.job.process.send_signal(signal.SIGINT if self.job.stops == 1 else signal.SIGKILL)

    def close(self, patience: float = 60.0) -> None:
        """Stop the job and wait until it has saved its checkpoint, at most `patience` seconds."""
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
    # A server that was started in the background ignores SIGINT, which a child would inherit.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()
