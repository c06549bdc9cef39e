"""Draw the means of a benchmark as bars: roughness ratio and error of the relit image of each setting.

    python3 -m training.evaluation.benchmark.chart out/benchmark/results.json --out chart.png

Several result files are drawn in one chart. If two files contain the same setting, the last one is used.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from training.console import run_tool
from training.evaluation.benchmark.settings import PAINT, SHAPE

# The panels from left to right: stage, measure, title, colour of the bars, and the value of the vertical
# reference line or None.
PANELS = (
    (SHAPE, "roughness_ratio", "roughness / true roughness", "#2471a3", 1.0),
    (PAINT, "relit_error", "error under an unseen light", "#c0392b", None),
)
# Sizes in pixels: height of a row and of a bar, width of the labels, of the longest bar and of the values.
ROW, BAR_HEIGHT, LABEL, BAR, VALUE = 20, 12, 170, 130, 50
TITLE = 30
PANEL = LABEL + BAR + VALUE


def draw_chart(summary: Mapping[str, dict], path: Path) -> None:
    """Write the chart as an image. Each panel contains the settings that have its measure, in their order.

    summary: the result of `summarise`. Bars start at 0; the longest bar of a panel has the length BAR. If no
    setting has a measure, no file is written.
    """
    panels = [
        (title, colour, reference, means(summary, stage, name))
        for stage, name, title, colour, reference in PANELS
    ]
    panels = [panel for panel in panels if panel[-1]]
    if not panels:
        return
    rows = max(len(values) for *_, values in panels)
    picture = Image.new("RGB", (PANEL * len(panels), TITLE + ROW * rows), "white")
    draw = ImageDraw.Draw(picture)
    for number, (title, colour, reference, values) in enumerate(panels):
        left, longest = PANEL * number + LABEL, max(max(values.values()), reference or 0.0) or 1.0
        line = round(BAR * reference / longest) if reference is not None else 0
        draw.text((left, 8), title, fill="black")
        for row, (setting, value) in enumerate(values.items()):
            top, length = TITLE + ROW * row, round(BAR * value / longest)
            draw.text((PANEL * number + 8, top), setting, fill="black")
            if length:
                draw.rectangle((left, top, left + length - 1, top + BAR_HEIGHT - 1), fill=colour)
            draw.text((left + max(length, line) + 6, top), f"{value:.3f}", fill="black")
        if line:
            across = left + line - 1
            draw.line((across, TITLE - 6, across, TITLE + ROW * len(values) - 1), fill="black")
    picture.save(path, optimize=True)


def means(summary: Mapping[str, dict], stage: str, name: str) -> dict[str, float]:
    """Return the value of a measure for each setting that has it."""
    found = {setting: record.get(stage, {}).get(name) for setting, record in summary.items()}
    return {setting: value for setting, value in found.items() if value is not None}


def draw_results(results: Sequence[Path], out: Path) -> None:
    """Draw the chart of several result files.

    Raises:
        ValueError: if a file is not a result of the benchmark.
        OSError: if a file cannot be read or written.
    """
    summary: dict[str, dict] = {}
    for path in results:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("summary"), dict):
            raise ValueError(f"{path}: no summary; give the results.json of a benchmark")
        summary |= content["summary"]
    draw_chart(summary, out)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="training.evaluation.benchmark.chart", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("results", nargs="+", type=Path, help="results.json of a benchmark")
    parser.add_argument("--out", type=Path, default=Path("chart.png"))
    options = parser.parse_args(arguments)
    return run_tool(lambda: draw_results(options.results, options.out))


if __name__ == "__main__":
    sys.exit(main())
