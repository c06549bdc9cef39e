"""Evaluate the exported meshes of finished runs with the classifier in data/judge.

    python3 -m training.evaluation out/pineapple_demo out/pineapple_demo_appearance --out evaluation.json

The prompt of a run is read from its checkpoint. For a run without a checkpoint, write FOLDER=PROMPT.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

# Must be set before torch is imported. By default, idle OpenMP threads wait in a busy loop, which slows down
# the program if other processes are busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from render.image_io.atomic import write_text
from training.console import run_tool
from training.evaluation.assets import find_run
from training.evaluation.classifier import NOTHING, load_classifier
from training.evaluation.contact_sheet import check_name, write_contact_sheet
from training.evaluation.r_precision import Evaluator, evaluate_runs

logger = logging.getLogger(__name__)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="training.evaluation", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("runs", nargs="+", metavar="FOLDER[=PROMPT]", help="the out_dir of a run, and its prompt")
    add("--out", type=Path, default=Path("evaluation.json"), help="the JSON file to write")
    add("--sheet", type=Path, help="contact sheet to write, .jpg or .png")
    add("--columns", type=int, default=4, help="columns of the contact sheet")
    add("--classifier", type=Path, default=Path("data/judge"), help="the classifier's folder")
    add("--device", default=DEVICE)
    return parser.parse_args(arguments)


def evaluate(options: argparse.Namespace) -> None:
    if options.sheet:
        check_name(options.sheet)
    classifier = load_classifier(options.classifier, torch.device(options.device))
    categories = tuple(category for category in classifier.settings.categories if category != NOTHING)
    runs = [find_run(argument, categories) for argument in options.runs]
    evaluations, found = evaluate_runs(runs, classifier, Evaluator(classifier))
    write_text(options.out, json.dumps(found, indent=1) + "\n")
    if options.sheet:
        write_contact_sheet(options.sheet, evaluations, found["assets"], options.columns)
    for domain, figures in found["r_precision"].items():
        logger.info("R-precision, %s: %s", domain, {k: v for k, v in figures.items() if k != "by_category"})
    if found["composition"]:
        logger.info("composition: %s", found["composition"])
    for domain, figures in found["two_faced"].items():
        logger.info("two-faced, %s: %s", domain, figures)
    for failure in found["failures"]:
        logger.info("wrong: %s (%s): %s", failure["prompt"], failure["folder"], failure["reason"])


def main(arguments: list[str] | None = None) -> int:
    return run_tool(lambda: evaluate(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
