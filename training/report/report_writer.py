"""Write report.html from the start of a run to its end."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from configs.schema import Config
from render.image_io.atomic import write_text
from training.distributed import SINGLE_PROCESS, Distributed
from training.report.run_info import run_info
from training.report.run_page import CONFIG_FILE, REPORT_FILE, RunInfo, RunState, prepare_model, run_page
from training.report.system_info import machine
from training.tasks import select_device
from training.time_estimate import CommandProgress

logger = logging.getLogger(__name__)

Argument = TypeVar("Argument")

# The pause between two page updates is at least PAUSE_SECONDS, and at least PAUSE_FACTOR times the duration
# of the last update.
PAUSE_SECONDS, PAUSE_FACTOR = 2.0, 50.0


@dataclass
class RunReport:
    """A context manager that writes the page of a run. `step` is the number of finished steps.

    If the folder has no page, the page is written at the start. The page of an earlier run is kept until
    `begin`, so a command that fails in its set-up does not replace it.

    On exit, the state on the page is set to done, exported (before the last step), stopped (by a signal) or
    failed. A failed run also shows its error. If the page cannot be written, a warning is logged once and the
    run continues. quiet: whether another process writes the page. progress: updated when parts of the run
    begin and end.
    """

    info: RunInfo
    step: int = 0
    quiet: bool = False
    progress: CommandProgress | None = None
    _begun: bool = False
    _seconds: dict[str, float] = field(default_factory=dict)
    _doing: str = ""
    _not_before: float = 0.0
    _failed_files: set[str] = field(default_factory=set)
    _model: Future[None] | None = None
    _page: Future[None] | None = None

    @property
    def path(self) -> Path:
        """The path of the page."""
        return self.info.out_dir / REPORT_FILE

    def begin(self, step: int) -> None:
        """Write config.json and the page after a successful set-up. step: the number of finished steps."""
        self._begun = True
        if self.progress and step:
            self.progress.step(step)
        if not self.quiet:
            with self._warns_once(CONFIG_FILE):
                write_text(self.info.out_dir / CONFIG_FILE, self.info.resolved_config)
        self.update(step)

    def update(self, step: int) -> None:
        """Write the page after `step` finished steps, unless the pause since the last update is too short."""
        self.step = step
        self.finish_page()
        if time.monotonic() >= self._not_before:
            self._write(self._state("running", self._doing))

    def finish_page(self) -> None:
        """Wait until the page of a part of the run (see `timed`) is written."""
        if self._page is not None:
            self._page.result()
            self._page = None

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure the time of a part of the run that is not a step, and show it on the page.

        The page is written in a thread, so the part starts at once.
        """
        self._doing = name
        self.finish_page()
        if time.monotonic() >= self._not_before:
            self._page = _in_thread(self._write, self._state("running", name))
        started = time.monotonic()
        if self.progress:
            self.progress.begin(name)
        yield
        self._seconds[name] = time.monotonic() - started
        if self.progress:
            self.progress.end(name)
        self._doing = ""

    def prepare_model(self) -> None:
        """Start to compress the exported model for the final page in a thread, because it takes a second."""
        if not self.quiet:
            self._model = _in_thread(prepare_model, self.info)

    def __enter__(self) -> "RunReport":
        self._begun = self._begun or not self.path.exists()
        self.update(self.step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish_page()
        name, doing = "done" if self.step == self.info.last_step else "exported", ""
        if isinstance(error, SystemExit | KeyboardInterrupt):
            name = "stopped"
            doing = "Stopped by a signal. The command below resumes from the last checkpoint."
        elif error is not None:
            name, doing = "failed", f"{type(error).__name__}: {error}"
        if self._model is not None:
            # An error is repeated, and logged, when the page is written.
            wait([self._model])
        self._write(self._state(name, doing))

    def _state(self, name: str, doing: str) -> RunState:
        return RunState(name, self.step, doing, dict(self._seconds), time.time())

    def _write(self, state: RunState) -> None:
        if self.quiet or not self._begun:
            return
        started = time.monotonic()
        with self._warns_once(REPORT_FILE):
            write_text(self.path, run_page(self.info, state))
        finished = time.monotonic()
        self._not_before = finished + max(PAUSE_SECONDS, PAUSE_FACTOR * (finished - started))

    @contextmanager
    def _warns_once(self, name: str) -> Iterator[None]:
        """Log an error of the block as a warning, once per file, and continue the run."""
        try:
            yield
        except Exception as error:  # A damaged file of the run can raise any exception.
            if name not in self._failed_files:
                logger.warning("%s cannot be written: %s", self.info.out_dir / name, error)
            self._failed_files.add(name)


def _in_thread(function: Callable[[Argument], None], argument: Argument) -> Future[None]:
    """Call a function in a thread that ends after the call."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="report")
    called = pool.submit(function, argument)
    pool.shutdown(wait=False)
    return called


def open_report(
    config: Config,
    argv: Sequence[str],
    distributed: Distributed = SINGLE_PROCESS,
    progress: CommandProgress | None = None,
) -> RunReport:
    """Create the report of a run. Only rank 0 writes the report."""
    info = run_info(config, argv, machine(select_device(config.run.device, distributed)))
    return RunReport(info, quiet=not distributed.is_main, progress=progress)
