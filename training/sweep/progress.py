"""Progress of a sweep: trial.json in each trial's folder, log lines, a progress bar and the overview page."""

import json
import logging
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from configs.demo import demo_paths
from training.report.index_page import Card, Stage, write_index
from training.report.run_info import config_file
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
    """Context manager that writes the trial records, the progress bar and the overview page.

    done: names of the trials that are already finished. todo: the trials that this process runs. The states
    of other processes' trials are read from the trials' folders. If the page cannot be written, a warning is
    logged.
    """

    def __init__(self, sweep: Sweep, done: Collection[str], todo: Sequence[Trial]) -> None:
        self.page = sweep.folder / PAGE_FILE
        self._sweep, self._done, self._todo = sweep, done, todo
        self._own: dict[str, Record] = {}
        self._running: list[str] = []
        self._written = -PAGE_SECONDS
        self._warned = False

    @property
    def failed(self) -> list[str]:
        """The names of the trials that failed."""
        return [name for name, record in self._own.items() if record.state == FAILED]

    def __enter__(self) -> "SweepProgress":
        for trial in self._todo:
            write_record(trial, Record(QUEUED))
        number, done = len(self._sweep.trials), len(self._done)
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

    def update(self, trial: Trial, record: Record) -> None:
        """Write the new state of a trial to its folder. If the trial has ended, also log the state."""
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
        """Write the overview page if it is older than PAGE_SECONDS or if `last` is true."""
        if not last and time.monotonic() - self._written < PAGE_SECONDS:
            return
        try:
            self._write_page(last)
        except Exception as error:  # Damaged pictures raise errors of many types. The trials must continue.
            if not self._warned:
                logger.warning("warning: %s is not written: %s", self.page, error)
            self._warned = True
        self._written = time.monotonic()

    def _write_page(self, last: bool) -> None:
        cards = [self._card(trial) for trial in self._sweep.trials]
        # The page stays live while trials of other ranks are running.
        live = not last or any(card.state == RUNNING for card in cards)
        write_index(self.page, f"Results in {self._sweep.folder}", self._sweep.command, cards, live)

    def _card(self, trial: Trial) -> Card:
        done = trial.name in self._done
        record = self._own.get(trial.name) or (Record(DONE) if done else read_record(trial))
        stages = [
            Stage(config.run.traits.stage, config.run.output_folder, config.run.traits.main_layer)
            for config in trial.configs
        ]
        changed = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in trial.overrides.items()
        }
        note = record.error or (current_step(trial) if record.state in (RUNNING, STOPPED) else "")
        following = next_commands(trial) if record.state == DONE else {}
        return Card(trial.name, changed, record.state, note, stages, following)

    def log_summary(self) -> None:
        """Log the number of trials in each state, and each failed trial with its error."""
        states = Counter(record.state for record in self._own.values())
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        logger.info("%s; overview: %s", counts or "nothing to do", self.page)
        for name in self.failed:
            logger.error("failed: %s: %s", name, self._own[name].error)


def next_commands(trial: Trial) -> dict[str, str]:
    """Return a dict from label to shell command for a finished trial.

    The commands paint a shape or continue its training, or export a painted mesh with larger textures.
    """
    last = trial.configs[-1]
    if last.run.traits.paints_base_mesh:
        larger = [str(2 * side) for side in last.export.texture_res]
        words = ["--config", str(config_file(last)), "--export-only", "--texture_res", *larger]
        return {"Export it with larger textures": _command(words)}
    words = ["--config", _painting_config(trial), "--base_mesh", str(last.run.mesh_path)]
    words += ["--text", last.guidance.text, "--out_dir", f"{last.run.out_dir}_painted"]
    longer = ["--config", str(config_file(last)), "--iter", str(2 * last.schedule.iter)]
    return {"Paint it": _command(words), "Continue its training": _command(longer)}


def _command(words: Sequence[str]) -> str:
    return shlex.join(["python3", "train.py", *words])


def _painting_config(trial: Trial) -> str:
    """Return the appearance config that belongs to the trial's geometry config, otherwise that of the demo.

    Two config files belong together if their names are X_geometry… and X_appearance… with the same X.
    """
    paths = [Path(word) for word in trial.argv if word.endswith(".json") and not word.startswith("--")]
    for path in reversed(paths):
        keyword = path.stem.partition("_geometry")[0]
        if found := sorted(path.parent.glob(f"{keyword}_appearance*.json")):
            return str(found[0])
    return demo_paths()[1]


def current_step(trial: Trial) -> str:
    """Return the last step of the trial's newest run: "painted: coarse, step 120 of 300".

    The result is "" before the first step.
    """
    for config in reversed(trial.configs):
        try:
            with (config.run.output_folder / "log.jsonl").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = log.read().splitlines()
            last = json.loads(lines[-1])
            return (
                f"{config.run.traits.stage}: {last['phase']}, step {last['step']} of {config.schedule.iter}"
            )
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            # The run has not started, or the last line of its log is incomplete.
            continue
    return ""
