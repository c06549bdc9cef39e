"""Train the judge, or have it look at finished runs.

    python3 -m sd.tiny.judge train --out data/judge --minutes 2
    python3 -m sd.tiny.judge look out/pineapple_demo out/pineapple_demo_appearance --out verdict.json

What a run was asked for is read from its checkpoint; FOLDER=PROMPT says it for a run that has none.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

# Before torch is imported: spinning OpenMP workers slow down as soon as another process is busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from dataset.objects import KINDS
from render.export.atomic import write_text
from sd.tiny.judge.asset import find_run
from sd.tiny.judge.make import TRAINING_SEED, MakeConfig, make_judge
from sd.tiny.judge.network import load_judge
from sd.tiny.judge.nothing import NOTHING
from sd.tiny.judge.sheet import check_name, write_sheet
from sd.tiny.judge.verdict import Court, judge_runs

logger = logging.getLogger(__name__)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sd.tiny.judge", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("train", help="make the judge").add_argument
    add("--out", type=Path, default=Path("data/judge"), help="the folder to write")
    add("--minutes", type=float, default=2.0, help="for everything")
    add("--steps", type=int, help="of each network, instead of the time that is left")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help="all by default")
    add("--instances", type=int, default=40, help="objects of a kind, at most")
    add("--held-out", type=int, default=8, help="objects of a kind that the accuracies are measured on")
    add("--batch", type=int, default=256)
    add("--workers", type=int, help="rendering processes; default 6 on CUDA, else 0 (this one)")
    add("--seed", type=int, default=TRAINING_SEED, help="of its objects; the prior's are 1 and 2")
    add("--device", default=DEVICE)
    add = commands.add_parser("look", help="judge finished runs").add_argument
    add("runs", nargs="+", metavar="FOLDER[=PROMPT]", help="the out_dir of a run, and what it was asked for")
    add("--out", type=Path, default=Path("verdict.json"), help="the JSON file to write")
    add("--sheet", type=Path, help="a contact sheet to write, .jpg or .png")
    add("--columns", type=int, default=4, help="of the contact sheet")
    add("--judge", type=Path, default=Path("data/judge"), help="the judge's folder")
    add("--device", default=DEVICE)
    return parser.parse_args(arguments)


def train(options: argparse.Namespace) -> None:
    workers = options.workers
    if workers is None:
        workers = 6 if options.device.startswith("cuda") else 0
    config = MakeConfig(
        out=options.out,
        minutes=options.minutes,
        kinds=tuple(options.kinds),
        instances=options.instances,
        held_out_instances=options.held_out,
        batch=options.batch,
        workers=workers,
        seed=options.seed,
        steps=options.steps,
    )
    judge = make_judge(config, torch.device(options.device))
    for objects, figures in judge.record["held_out"].items():
        for domain in judge.networks:
            logger.info("held out, %s, %s: %s", objects, domain, figures[domain])


def look(options: argparse.Namespace) -> None:
    if options.sheet:
        check_name(options.sheet)
    judge = load_judge(options.judge, torch.device(options.device))
    kinds = tuple(kind for kind in judge.settings.kinds if kind != NOTHING)
    runs = [find_run(argument, kinds) for argument in options.runs]
    verdicts, found = judge_runs(runs, judge, Court(judge))
    write_text(options.out, json.dumps(found, indent=1) + "\n")
    if options.sheet:
        write_sheet(options.sheet, verdicts, found["assets"], options.columns)
    for domain, figures in found["r_precision"].items():
        logger.info("R-precision, %s: %s", domain, {k: v for k, v in figures.items() if k != "by_kind"})
    if found["composition"]:
        logger.info("composition: %s", found["composition"])
    for domain, figures in found["two_faced"].items():
        logger.info("two-faced, %s: %s", domain, figures)
    for failure in found["failures"]:
        logger.info("wrong: %s (%s): %s", failure["prompt"], failure["folder"], failure["reason"])


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    options = parse(arguments)
    try:
        {"train": train, "look": look}[options.command](options)
    except (ValueError, FileNotFoundError) as error:
        logger.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
