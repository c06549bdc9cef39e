"""Run the trials of a benchmark in worker processes and write each result to disk."""

import json
import logging
import os
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch

from render.image_io.atomic import write_text
from training.evaluation.benchmark.measure import Result, run_trial
from training.evaluation.benchmark.settings import Trial
from training.evaluation.benchmark.summary import summarise, table

logger = logging.getLogger(__name__)


@dataclass
class ResultStore:
    """The results of the finished trials, which are stored in the folder `out`.

    The methods are thread-safe.
    """

    out: Path
    settings: Mapping[str, Mapping[str, object]]
    run_info: dict
    results: list[dict] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def log(self) -> Path:
        return self.out / "trials.jsonl"

    def read(self) -> set[str]:
        """Load the results of earlier calls and return the names of the trials that did not fail."""
        if self.log.is_file():
            lines = self.log.read_text(encoding="utf-8").splitlines()
            known = [json.loads(line) for line in lines if line.endswith("}")]
            self.results = [result for result in known if result["setting"] in self.settings]
        return {result["name"] for result in self.results if not result["error"]}

    def add(self, result: Result, remaining: int) -> None:
        record = {"name": result.trial.name, **result.to_json()}
        with self.lock:
            self.results.append(record)
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self.write()
        ratio = record.get("roughness_ratio", "")
        logger.info(
            "%s: %.1f s %s %s (%d left)", record["name"], result.seconds, ratio, result.error or "", remaining
        )

    def latest(self) -> list[dict]:
        """Return the last result of each trial. A repeated trial has several results."""
        return list({result["name"]: result for result in self.results}.values())

    def summary(self) -> dict[str, dict]:
        return summarise(self.latest(), list(self.settings))

    def write(self) -> None:
        """Write results.json and table.md. If a trial was repeated, only its last result is used."""
        summary = self.summary()
        content = {**self.run_info, "settings": self.settings, "summary": summary, "trials": self.latest()}
        write_text(self.out / "results.json", json.dumps(content, indent=1) + "\n")
        write_text(self.out / "table.md", table(summary) + "\n")


class Queue:
    """A queue of trials. `next` returns None if no trial is left or if the remaining time is too short.

    The expected time of a trial is the median of the finished trials with its stage and setting, or, if there
    is none, the longest time of any finished trial.
    """

    def __init__(self, trials: Sequence[Trial], deadline: float):
        self._trials, self._deadline = list(trials), deadline
        self._lock = threading.Lock()
        self._seconds: dict[tuple[str, str], list[float]] = {}

    def __len__(self) -> int:
        return len(self._trials)

    def next(self) -> Trial | None:
        with self._lock:
            if not self._trials or time.monotonic() + self._expected(self._trials[0]) > self._deadline:
                return None
            return self._trials.pop(0)

    def _expected(self, trial: Trial) -> float:
        if same := self._seconds.get((trial.stage, trial.setting)):
            return statistics.median(same)
        return max((max(times) for times in self._seconds.values()), default=0.0)

    def took(self, trial: Trial, seconds: float) -> None:
        with self._lock:
            self._seconds.setdefault((trial.stage, trial.setting), []).append(seconds)


def prepare_worker(log: str, threads: int) -> None:
    """Redirect the output of this worker process to a file and set its number of CPU threads."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    torch.set_num_threads(threads)


def work(slot: int, queue: Queue, store: ResultStore, threads: int, common: Mapping[str, object]) -> None:
    """Run trials in one worker process until `Queue.next` returns None.

    If the process ends unexpectedly, its trial counts as failed and a new process is started.
    """
    log = store.out / f"worker_{slot}.log"

    def process() -> ProcessPoolExecutor:
        context = get_context("spawn")
        return ProcessPoolExecutor(1, context, initializer=prepare_worker, initargs=(str(log), threads))

    pool = process()
    while (trial := queue.next()) is not None:
        started = time.monotonic()
        try:
            result = pool.submit(run_trial, trial, store.settings[trial.setting], common, store.out).result()
            queue.took(trial, result.seconds)
        except (BrokenProcessPool, RuntimeError) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            pool = process()
            reason = f"the process ended ({' '.join(str(error).split())[:200]}); see {log.name}"
            result = Result(trial, {}, time.monotonic() - started, reason)
        store.add(result, len(queue))
    pool.shutdown(wait=False, cancel_futures=True)


def run_queue(
    queue: Queue, store: ResultStore, jobs: int, threads: int, common: Mapping[str, object]
) -> None:
    """Run all trials of the queue.

    jobs: the number of concurrent trials. threads: CPU threads of each trial. common: see `config_of`.
    """
    with ThreadPoolExecutor(jobs) as pool:
        for worker in [pool.submit(work, slot, queue, store, threads, common) for slot in range(jobs)]:
            worker.result()
