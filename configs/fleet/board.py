"""What a fleet tells while it runs: a record in each cell's folder, lines, one bar, the page of all cells."""

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

from configs.fleet.cells import (
    DONE,
    FAILED,
    PAGE_FILE,
    QUEUED,
    RUNNING,
    STOPPED,
    Cell,
    Fleet,
    Record,
    read_record,
    write_record,
)
from render.report.index_page import Card, Stage, write_index

logger = logging.getLogger(__name__)

PAGE_SECONDS = 15.0
STAGE_LABELS = {"geometry_modeling": "shape", "appearance_modeling": "painted"}
STAGE_LAYERS = {"geometry_modeling": "normal", "appearance_modeling": "shaded"}
TAIL_BYTES = 4096


class Board:
    """Keeps records, bar and page; a context manager.

    done: the names of the cells that were done before. todo: the cells that this process has to see to; those
    of other processes are read from their folders.
    """

    def __init__(self, fleet: Fleet, done: Collection[str], todo: Sequence[Cell]) -> None:
        self.page = fleet.folder / PAGE_FILE
        self._fleet, self._done, self._todo = fleet, done, todo
        self._own: dict[str, Record] = {}
        self._running: list[str] = []
        self._written = -PAGE_SECONDS

    @property
    def failed(self) -> list[str]:
        """The names of the cells that failed."""
        return [name for name, record in self._own.items() if record.state == FAILED]

    def __enter__(self) -> "Board":
        for cell in self._todo:
            write_record(cell, Record(QUEUED))
        number, done = len(self._fleet.cells), len(self._done)
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

    def tell(self, cell: Cell, record: Record) -> None:
        """A cell's new state: into its folder, and a line where it ended."""
        write_record(cell, record)
        self._own[cell.name] = record
        self._running = [name for name, own in self._own.items() if own.state == RUNNING]
        self._bar.set_postfix_str(", ".join(self._running[:3]) + (" …" if len(self._running) > 3 else ""))
        if record.state in (DONE, FAILED):
            self._bar.update()
            ended = sum(own.state in (DONE, FAILED) for own in self._own.values())
            line = f"[{ended}/{len(self._todo)}] {record.state}: {cell.name} ({record.seconds:.0f} s)"
            logger.info("%s", f"{line}: {record.error}" if record.error else line)
        elif record.state == STOPPED:
            logger.info("stopped: %s", cell.name)

    def refresh(self, last: bool = False) -> None:
        """The page anew, where the last one is old."""
        if not last and time.monotonic() - self._written < PAGE_SECONDS:
            return
        cards = [self._card(cell) for cell in self._fleet.cells]
        # Other ranks may still be at work when this one is not.
        live = not last or any(card.state == RUNNING for card in cards)
        write_index(self.page, f"Results in {self._fleet.folder}", self._fleet.command, cards, live)
        self._written = time.monotonic()

    def _card(self, cell: Cell) -> Card:
        done = cell.name in self._done
        record = self._own.get(cell.name) or (Record(DONE) if done else read_record(cell))
        stages = [
            Stage(STAGE_LABELS[config.run.mode], config.run.output_folder, STAGE_LAYERS[config.run.mode])
            for config in cell.configs
        ]
        changed = {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in cell.changed.items()
        }
        note = record.error or (progress(cell) if record.state in (RUNNING, STOPPED) else "")
        return Card(cell.name, changed, record.state, note, stages)

    def summary(self) -> None:
        """The last lines: how many of what, and which failed."""
        states = Counter(record.state for record in self._own.values())
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        logger.info("%s; overview: %s", counts or "nothing to do", self.page)
        for name in self.failed:
            logger.error("failed: %s: %s", name, self._own[name].error)


def progress(cell: Cell) -> str:
    """How far a cell is, by its last run that has begun: "painted: coarse, step 120 of 300"; or ""."""
    for config in reversed(cell.configs):
        try:
            with (config.run.output_folder / "log.jsonl").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = log.read().splitlines()
            last = json.loads(lines[-1])
        except (OSError, ValueError, IndexError):
            # Not begun, or a line is just being written.
            continue
        label = STAGE_LABELS[config.run.mode]
        return f"{label}: {last['phase']}, step {last['step']} of {config.schedule.iter}"
    return ""
