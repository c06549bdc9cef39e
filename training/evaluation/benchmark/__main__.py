"""Compare guidance settings on the embedded prior against exact ground truth.

    python3 -m training.evaluation.benchmark --suite scores --out out/benchmark --minutes 8 --jobs 12

Each trial optimizes either the geometry of a category with the demo's settings, or the appearance of a
procedural object whose true mesh and material are known. Three files are written after each trial:
OUT/trials.jsonl (one line per trial), OUT/results.json (means of each setting), OUT/table.md. OUT/chart.png
and OUT/sheet.jpg are written at the end. With --suite janus, OUT/curve.png is also written. Run the same
command again to continue: trials in trials.jsonl are not repeated. Arguments KEY=VALUE after -- are config
values for all trials.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Must be set before torch is imported, here and in the workers. Otherwise idle OpenMP threads use CPU time
# and slow down other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from configs.errors import ConfigError
from dataset.procedural import CATEGORIES
from training.evaluation.benchmark.chart import draw_chart
from training.evaluation.benchmark.executor import Queue, ResultStore, run_queue
from training.evaluation.benchmark.janus import draw_curve, janus_settings
from training.evaluation.benchmark.settings import (
    COST,
    PAINT,
    SHAPE,
    SUITES,
    TWELVE,
    config_of,
    read_setting,
    start_scale,
    trials_of,
)
from training.evaluation.benchmark.summary import contact_sheet
from training.report.system_info import machine
from training.sweep.run import usable_cores
from training.tasks import select_device

logger = logging.getLogger(__name__)

JANUS = "janus"
ALL_SUITES = SUITES | {JANUS: janus_settings()}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="training.evaluation.benchmark", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--suite", choices=ALL_SUITES, help="a set of settings")
    add(
        "--setting",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "KEY=VALUE"),
        help="a setting of your own, may be repeated; the first one of all is the baseline of the table",
    )
    add("--only", nargs="+", metavar="NAME", help="of the suite's settings")
    add("--categories", nargs="+", default=list(TWELVE[:3]), metavar="CATEGORY", help="all, twelve, or names")
    add("--seeds", nargs="+", type=int, default=[1])
    add("--stages", nargs="+", choices=(SHAPE, PAINT), default=[SHAPE])
    add("--jobs", type=int, default=1, help="trials at a time")
    add("--minutes", type=float, default=float("inf"), help="no trial starts that would end later")
    add("--out", type=Path, default=Path("out/benchmark"))
    add("--no-cost", action="store_true", help="do not measure time and memory of a step first")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    options.common = read_setting(["", *arguments[cut + 1 :]])[1]
    return options


def chosen_settings(options: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Return the settings of the suite and of the command line.

    Raises:
        ConfigError: if there is no setting, or if --only contains a setting that the suite does not have.
    """
    suite = ALL_SUITES.get(options.suite, {})
    for name in options.only or []:
        if name not in suite:
            raise ConfigError(f"command line: --only {name}: the suite has {', '.join(suite) or 'nothing'}")
    found = {name: suite[name] for name in options.only or suite}
    found |= dict(map(read_setting, options.setting))
    if not found:
        raise ConfigError("command line: nothing to compare; give --suite or --setting")
    return found


def benchmark(options: argparse.Namespace) -> int:
    begun = time.monotonic()
    named = {"all": CATEGORIES, "twelve": TWELVE}
    categories = list(named.get(options.categories[0], options.categories))
    settings = chosen_settings(options)
    for category in categories:
        start_scale(category)
    trials = trials_of(list(settings), categories, options.seeds, options.stages)
    for trial in trials:
        # Check the config, so that an invalid key or value stops the benchmark before its first trial.
        config_of(trial, settings[trial.setting], options.common, options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    store = ResultStore(options.out, settings, run_info(options))
    done = store.read()
    todo = [trial for trial in trials if trial.name not in done]
    deadline = begun + 60 * options.minutes
    threads = max(1, usable_cores() // options.jobs)
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(threads)
    if not options.no_cost:
        # The COST trials run first and one at a time, so that other trials do not affect their times. They
        # also fill Triton's cache for the other trials.
        costs = Queue([trial for trial in todo if trial.stage == COST], deadline)
        run_queue(costs, store, 1, threads, options.common)
    queue = Queue([trial for trial in todo if trial.stage != COST], deadline)
    run_queue(queue, store, options.jobs, threads, options.common)
    store.run_info["minutes"] = round((time.monotonic() - begun) / 60, 2)
    store.write()
    if options.suite == JANUS:
        draw_curve(store.summary(), options.out / "curve.png")
    draw_chart(store.summary(), options.out / "chart.png")
    contact_sheet(store.results, list(settings), options.out / "runs", options.out / "sheet.jpg")
    logger.info("%s", (options.out / "table.md").read_text(encoding="utf-8"))
    if len(queue):
        logger.info("%d trials were not started: the time was over; the same command continues", len(queue))
    return 1 if any(result["error"] for result in store.results) else 0


def run_info(options: argparse.Namespace) -> dict:
    """Return the command, the date, and the result of `machine` (commit, versions and hardware)."""
    device = select_device(str(options.common.get("device", "auto")))
    return {
        "command": f"python3 -m training.evaluation.benchmark {' '.join(sys.argv[1:])}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": dict(machine(device)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 on success, 1 if some trials failed, 2 for an error that the user can fix."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        return benchmark(parse(arguments))
    except (ValueError, OSError) as error:
        logger.error("error: %s", " ".join(str(error).split()))
        return 2


if __name__ == "__main__":
    sys.exit(main())
