"""Show the front and the back of benchmark shapes, with one setting beside another.

    python3 -m data.make_two_faced_picture --runs out/janus/runs --settings plain four-views --out faces.png

Each row is a category. Each setting has the shapes of the given seeds. The two images of a shape are the
normals from 45° in front and 45° behind, which the benchmark wrote to runs/NAME/picture.png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from training.evaluation.benchmark.settings import SHAPE, Trial
from training.evaluation.classifier import DIRECTIONAL

# Pixels per image, height of the captions, and space between two settings.
SIDE, CAPTION, GAP = 132, 22, 24
# The shown part of an image: its central square with this share of the side.
SHOWN = 0.88


def halves(path: Path) -> list[Image.Image]:
    """Return the central squares of the front and the back view.

    Raises:
        FileNotFoundError: if the run wrote no picture, because it failed.
    """
    both = Image.open(path).convert("RGB")
    size, margin = both.height, round(both.height * (1 - SHOWN) / 2)
    boxes = [(left + margin, margin, left + size - margin, size - margin) for left in (0, size)]
    return [both.crop(box).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for box in boxes]


def sheet(
    runs: Path, settings: Sequence[str], categories: Sequence[str], seeds: Sequence[int]
) -> Image.Image:
    """Return the picture: a row per category and, for each setting and seed, the front and the back."""
    block = 2 * SIDE * len(seeds)
    size = ((block + GAP) * len(settings) - GAP, CAPTION + SIDE * len(categories))
    found = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(found)
    for column, setting in enumerate(settings):
        left = column * (block + GAP)
        draw.text((left + 4, 6), f"{setting}: front and back, {len(seeds)} seeds", fill="black")
        for row, category in enumerate(categories):
            for index, seed in enumerate(seeds):
                picture = runs / Trial(SHAPE, setting, category, seed).name / "picture.png"
                for side, image in enumerate(halves(picture)):
                    found.paste(image, (left + (2 * index + side) * SIDE, CAPTION + row * SIDE))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="data.make_two_faced_picture", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--runs", type=Path, required=True, help="folder of the runs of a benchmark")
    add("--settings", nargs="+", required=True, help="names of settings of the benchmark")
    add("--categories", nargs="+", default=["car", "chair", "person", "head"], choices=DIRECTIONAL)
    add("--seeds", nargs="+", type=int, default=[1, 2])
    add("--out", type=Path, required=True, help="the image to write")
    options = parser.parse_args(arguments)
    try:
        sheet(options.runs, options.settings, options.categories, options.seeds).save(options.out, quality=88)
    except OSError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
