"""Measure time and memory of a step for several grid resolutions, batch sizes, image sizes and face counts.

    python3 tests/benchmarks/growth.py --model full-size
    python3 tests/benchmarks/growth.py --model data/tiny-sd --device cpu --grids 16 32 --batches 1 2 \\
        --resolutions 64 --side 32 --faces 2000 --steps 3 --fit 20

One parameter of the published pineapple configs is varied at a time. The baseline is grid 128, batch 4, views
of 512² pixels and 130,000 faces. The results are medians over whole training steps on the fitted start shape
(see stages.py). All other options are config keys.
"""

import argparse
import gc
import json
import logging
import platform
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

# This file is run as a script, so the repository root and tests/ are added to the import path.
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

# ruff: noqa: E402
import torch

from benchmarks.stages import SteppedRun, phases_of, sphere
from configs.cli import load_configs
from configs.schema import Config
from render.mesh_io.write_obj import write_obj
from sd.stable_diffusion import StableDiffusion
from training.tasks import select_device

GEOMETRY = "configs/pineapple_geometry_single_gpu.json"
APPEARANCE = "configs/pineapple_appearance_strategy0_single_gpu.json"
GRID, BATCH, FACES = 128, 4, 130_000


def variants(options: argparse.Namespace) -> list[dict]:
    """Return one dict per measurement, sorted by batch size. `axis` is the name of the varied parameter."""
    found = []

    def add(axis: str, value: int, config: str, batch: int, *words: str, faces: int = FACES) -> None:
        found.append(
            {"axis": axis, "value": value, "config": config, "batch": batch, "words": words, "faces": faces}
        )

    for grid in options.grids:
        add("grid", grid, GEOMETRY, BATCH, "--dmtet_grid", str(grid))
    for batch in options.batches:
        add("batch", batch, GEOMETRY, batch, "--dmtet_grid", str(min(GRID, max(options.grids))))
    for side in options.resolutions:
        grid = str(min(GRID, max(options.grids)))
        add("train_res", side, GEOMETRY, BATCH, "--dmtet_grid", grid, "--train_res", str(side), str(side))
    for faces in options.faces:
        add("faces", faces, APPEARANCE, BATCH, faces=faces)
    return sorted(found, key=lambda variant: variant["batch"])


def measure(variant: dict, prior: StableDiffusion, config: Config, options: argparse.Namespace) -> dict:
    record = phases_of(SteppedRun(config, prior), options.fit, False, lambda run: run.total(options.steps))
    logging.info("%s %s: %s", variant["axis"], variant["value"], record["phases"])
    return {name: variant[name] for name in ("axis", "value", "batch")} | record


def benchmark(options: argparse.Namespace, model: str, folder: Path) -> list[dict]:
    rows = []
    for _, group in groupby(variants(options), key=lambda variant: variant["batch"]):
        # Free the previous prior before the next one is loaded.
        prior = None
        gc.collect()
        for variant in group:
            words = ["--config", variant["config"], "--sd_model", model, "--out_dir", str(folder / "out")]
            words += ["--batch", str(variant["batch"]), "--device", options.device]
            words += ["--train_res", str(options.side), str(options.side), *options.rest, *variant["words"]]
            if variant["config"] == APPEARANCE:
                mesh = write_obj(folder / f"mesh{variant['faces']}", sphere(variant["faces"]))
                words += ["--base_mesh", str(mesh)]
            config = load_configs(words)[0]
            # CUDA graphs are cached for only a few batch sizes, so a new prior is loaded for each batch size.
            if prior is None:
                prior = StableDiffusion.from_pretrained(model, select_device(options.device))
            rows.append(measure(variant, prior, config, options))
    return rows


def table(rows: list[dict]) -> str:
    """Return a Markdown table with the time (ms) and the memory (GB) of a step in each phase."""
    lines = ["| | faces | first phase | GB | second phase | GB |", "| --- " * 6 + "|"]
    for axis in dict.fromkeys(row["axis"] for row in rows):
        for row in sorted((row for row in rows if row["axis"] == axis), key=lambda row: row["value"]):
            cells = []
            for name, phase in row["phases"].items():
                if name != "fit":
                    gb = phase["peak_gb"]
                    cells += [f"{phase['total_ms']:.1f} ms", "" if gb is None else f"{gb:.1f}"]
            lines.append(f"| {axis} {row['value']} | {row['faces']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", default="full-size", help="full-size, or an sd_model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--grids", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 6, 8])
    parser.add_argument("--resolutions", type=int, nargs="*", default=[256, 512, 1024])
    parser.add_argument("--side", type=int, default=512, help="of views, where that is not what changes")
    parser.add_argument("--faces", type=int, nargs="*", default=[20_000, 130_000, 400_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--fit", type=int, default=200, help="steps of the start shape's fit")
    parser.add_argument("--json", type=Path, help="a file to write")
    options, options.rest = parser.parse_known_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model == "full-size":
            from full_size_model import write_full_size_model

            model = str(write_full_size_model(Path(folder) / "model"))
        rows = benchmark(options, model, Path(folder))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    where = {"hardware": gpu or platform.machine(), "torch": torch.__version__, "date": time.strftime("%F")}
    sys.stdout.write(", ".join(where.values()) + "\n\n" + table(rows) + "\n")
    if options.json:
        options.json.write_text(json.dumps({**where, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
