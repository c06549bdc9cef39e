"""What a sweep reports while it runs: a record in each trial's folder, log lines, a bar, the overview."""

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from training.report.index_page import Card, Stage, write_index
from training.sweep.trials import (
    DONE,
    FAILED,
    PAGE_FILE,
    QUEUED,
    RUNNING,
    STOPPED,
    Record,
    Sweep,
    Trial,
    read_record,
    write_record,
)

logger = logging.getLogger(__name__)

PAGE_SECONDS = 15.0
TAIL_BYTES = 4096


class SweepProgress:
    """Keeps records, bar and page; a context manager.

    done: the names of the trials that were done before. todo: the trials that this process has to see to;
    those of other processes are read from their folders.
    """

    def __init__(self, sweep: Sweep, done: Collection[str], todo: Sequence[Trial]) -> None:
        self.page = sweep.folder / PAGE_FILE
        self._fleet, self._done, self._todo = sweep, done, todo
        self._own: dict[str, Record] = {}
        self._running: list[str] = []
        self._written = -PAGE_SECONDS

    @property
    def failed(self) -> list[str]:
        """The names of the trials that failed."""
        return [name for name, record in self._own.items() if record.state == FAILED]

    def __enter__(self) -> "SweepProgress":
        for trial in self._todo:
            write_record(trial, Record(QUEUED))
        number, done = len(self._fleet.trials), len(self._done)
        logger.info("%d results, %d of them done already; overview: %s", number, done, self.page)
        self._stack = ExitStack()
        self._bar = self._stack.enter_context(
            tqdm(
                total=len(self._todo),
                unit="result",
                file=sys.stderr,
                disable=not sys.stderr.isatty(),
                dynamic_ncols=True,
            )
        )
        self._stack.enter_context(logging_redirect_tqdm())
        self.refresh()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self.refresh(last=True)

    def tell(self, trial: Trial, record: Record) -> None:
        """A trial's new state: into its folder, and a line where it ended."""
        write_record(trial, record)
        self._own[trial.name] = record
        self._running = [name for name, own in self._own.items() if own.state == RUNNING]
        self._bar.set_postfix_str(", ".join(self._running[:3]) + (" …" if len(self._running) > 3 else ""))
        if record.state in (DONE, FAILED):
            self._bar.update()
            ended = sum(own.state in (DONE, FAILED) for own in self._own.values())
            line = f"[{ended}/{len(self._todo)}] {record.state}: {trial.name} ({record.seconds:.0f} s)"
            logger.info("%s", f"{line}: {record.error}" if record.error else line)
        elif record.state == STOPPED:
            logger.info("stopped: %s", trial.name)

    def refresh(self, last: bool = False) -> None:
        """The page anew, where the last one is old."""
        if not last and time.monotonic() - self._written < PAGE_SECONDS:
            return
        cards = [self._card(trial) for trial in self._fleet.trials]
        # Other ranks may still be at work when this one is not.
        live = not last or any(card.state == RUNNING for card in cards)
        write_index(self.page, f"Results in {self._fleet.folder}", self._fleet.command, cards, live)
        self._written = time.monotonic()

    def _card(self, trial: Trial) -> Card:
        done = trial.name in self._done
        record = self._own.get(trial.name) or (Record(DONE) if done else read_record(trial))
        stages = [
            Stage(config.run.traits.stage, config.run.output_folder, config.run.traits.main_layer)
            for config in trial.configs
        ]
        changed = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in trial.changed.items()
        }
        note = record.error or (progress(trial) if record.state in (RUNNING, STOPPED) else "")
        return Card(trial.name, changed, record.state, note, stages)

    def summary(self) -> None:
        """The last lines: how many of what, and which failed."""
        states = Counter(record.state for record in self._own.values())
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        logger.info("%s; overview: %s", counts or "nothing to do", self.page)
        for name in self.failed:
            logger.error("failed: %s: %s", name, self._own[name].error)


def progress(trial: Trial) -> str:
    """How far a trial is, by its last run that has begun: "painted: coarse, step 120 of 300"; or ""."""
    for config in reversed(trial.configs):
        try:
            with (config.run.output_folder / "log.jsonl").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = log.read().splitlines()
            last = json.loads(lines[-1])
        except (OSError, ValueError, IndexError):
            # Not begun, or a line is just being written.
            continue
        label = config.run.traits.stage
        return f"{label}: {last['phase']}, step {last['step']} of {config.schedule.iter}"
    return ""
