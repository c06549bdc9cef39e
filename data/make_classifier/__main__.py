"""Train the classifier data/judge, which evaluates finished runs.

python3 -m data.make_classifier --out data/judge --minutes 2
"""

import argparse
import logging
import os
import sys
from pathlib import Path

# This variable must be set before torch is imported. Without it, idle OpenMP threads wait in a busy loop,
# which slows down the program if other processes are busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from data.make_classifier.make import TRAINING_SEED, MakeConfig, make_classifier
from dataset.procedural import CATEGORIES
from training.console import run_tool

logger = logging.getLogger(__name__)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="data.make_classifier", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("data/judge"), help="the folder to write")
    add("--minutes", type=float, default=2.0, help="total time")
    add("--steps", type=int, help="training steps of each network, instead of a time limit")
    add(
        "--categories",
        nargs="+",
        choices=CATEGORIES,
        default=list(CATEGORIES),
        metavar="CATEGORY",
        help="all by default",
    )
    add("--instances", type=int, default=40, help="maximum number of objects per category")
    add("--held-out", type=int, default=8, help="test objects per category")
    add("--batch", type=int, default=256)
    add("--workers", type=int, help="rendering processes; default 6 on CUDA, else 0 (this one)")
    add("--seed", type=int, default=TRAINING_SEED, help="seed of its objects; the prior uses 1 and 2")
    add("--device", default=DEVICE)
    return parser.parse_args(arguments)


def train(options: argparse.Namespace) -> None:
    workers = options.workers
    if workers is None:
        workers = 6 if options.device.startswith("cuda") else 0
    config = MakeConfig(
        out=options.out,
        minutes=options.minutes,
        categories=tuple(options.categories),
        instances=options.instances,
        held_out_instances=options.held_out,
        batch=options.batch,
        workers=workers,
        seed=options.seed,
        steps=options.steps,
    )
    classifier = make_classifier(config, torch.device(options.device))
    for objects, figures in classifier.record["held_out"].items():
        for domain in classifier.networks:
            logger.info("held out, %s, %s: %s", objects, domain, figures[domain])


def main(arguments: list[str] | None = None) -> int:
    return run_tool(lambda: train(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
