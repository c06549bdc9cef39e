"""Compute how much of a painting's albedo error follows from its errors of metallic and roughness.

    python3 tests/benchmarks/albedo_ambiguity.py RESULTS.jsonl [--setting plain] [--side 48]

RESULTS.jsonl is written by `training.evaluation.benchmark --stages paint`. For each trial, the true object is
rendered under the light of the evaluation. `metallic` is the albedo error of a material that has exactly the
true image, but the metallic error of the trial. `both` is the same with a roughness that is higher by the
roughness error of the trial. `shade` is the mean difference between random shades of the material's name and
the mean shade. The errors are mean absolute differences of linear RGB.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

# ruff: noqa: E402
import torch

from dataset.procedural.materials import dressed
from dataset.procedural.random_draw import Draw
from render.gbuffer import rasterize_gbuffer
from render.raster.select import choose_rasteriser
from render.shade.brdf import shade
from render.shade.light import load_environment
from training.evaluation.benchmark.settings import PAINT, Trial, config_of
from training.evaluation.ground_truth import MATERIAL_DRAWS, true_material, true_mesh, true_object
from training.evaluation.views import LIGHT, evaluation_cameras

CPU = torch.device("cpu")


def explained(result: dict, side: int) -> dict[str, float]:
    """Return the three errors of a trial, and the measured one. side: pixels per side of the images."""
    category, seed = result["category"], result["seed"]
    config = config_of(Trial(PAINT, "plain", category, seed), {}, {}, Path("out"))
    subject = true_object(category, seed)
    mesh = true_mesh(subject, config.geometry, CPU)
    points = rasterize_gbuffer(mesh, evaluation_cameras(side), choose_rasteriser(CPU, "auto"))
    kd, ks = true_material(subject, result["material"])(points.position)
    light = load_environment(LIGHT).prefiltered()

    def lit(albedo: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        return shade(albedo, rest, points.normal, points.to_viewer, light)

    def error(metallic: float, roughness: float) -> float:
        """The shading is linear in the albedo, so two renderings determine the albedo of an image."""
        rest = ks.clone()
        rest[:, 2] = (ks[:, 2] + metallic).clamp(0, 1)
        rest[:, 1] = (ks[:, 1] + roughness).clamp(0.3, 0.9)
        black = lit(torch.zeros_like(kd), rest)
        slope = (lit(torch.ones_like(kd), rest) - black).clamp(min=1e-6)
        return (((lit(kd, ks) - black) / slope).clamp(0.03, 0.97) - kd).abs().mean().item()

    draw = Draw(torch.Generator().manual_seed(seed))
    shades = [
        dressed(subject, result["material"], draw).material(points.position)[0] for _ in range(MATERIAL_DRAWS)
    ]
    return {
        "measured": result["albedo_error"],
        "metallic": error(result["metallic_error"], 0.0),
        "both": error(result["metallic_error"], result["roughness_error"]),
        "shade": statistics.fmean((each - kd).abs().mean().item() for each in shades),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="JSON lines of a benchmark")
    parser.add_argument("--setting", default="plain")
    parser.add_argument("--side", type=int, default=48, help="pixels per side of the images")
    options = parser.parse_args(arguments)
    lines = options.results.read_text(encoding="utf-8").splitlines()
    trials = [result for result in map(json.loads, lines) if result["setting"] == options.setting]
    found = [explained(trial, options.side) for trial in trials if "metallic_error" in trial]
    if not found:
        parser.error(f"{options.results}: no painted trial of the setting {options.setting!r}")
    for name in found[0]:
        print(f"{name}: {statistics.fmean(row[name] for row in found):.4f}")
    if len(found) > 2:
        columns = [[row[name] for row in found] for name in ("measured", "metallic")]
        print(f"correlation of measured and metallic: {statistics.correlation(*columns):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
