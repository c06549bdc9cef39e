"""Summary of a benchmark: a record for each setting, a table and a contact sheet."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from training.evaluation.benchmark.settings import COST, PAINT, SHAPE

# A surface counts as smooth if its roughness is at most this factor times the roughness of the true surface.
SMOOTH_RATIO = 1.25
# A tile shows two views side by side.
TILE, LABEL = (224, 112), 24

# Measures of each stage that are averaged: (key of the result, number of decimals).
MEANS = {
    SHAPE: (("recognised", 3), ("roughness_ratio", 3), ("non_manifold", 5), ("loose", 4), ("parts", 1)),
    PAINT: (
        ("recognised", 3),
        ("material_recognised", 3),
        ("albedo_error", 4),
        ("albedo_error_scaled", 4),
        ("roughness_error", 4),
        ("relit_error", 4),
    ),
}


def summarise(results: Sequence[dict], settings: Sequence[str]) -> dict[str, dict]:
    """Compute a record for each setting.

    A record contains the step cost, and for each stage the means and the numbers of trials and failures.
    """
    found = {}
    for setting in settings:
        own = [result for result in results if result["setting"] == setting]
        cost = [result for result in own if result["stage"] == COST and not result["error"]]
        record = {"cost": {k: v for k, v in cost[0].items() if k.endswith(("_ms", "_mb"))} if cost else {}}
        for stage, means in MEANS.items():
            trials = [result for result in own if result["stage"] == stage]
            if trials:
                record[stage] = _stage(trials, means)
        found[setting] = record
    return found


def _stage(trials: Sequence[dict], means: Sequence[tuple[str, int]]) -> dict:
    """Compute the means of a stage. Failed trials count as not recognised. Other means exclude them."""
    whole = [trial for trial in trials if not trial["error"]]
    found: dict = {"trials": len(trials), "failed": len(trials) - len(whole)}
    for name, decimals in means:
        values = [float(trial[name]) for trial in whole if name in trial]
        if name.endswith("recognised"):
            values += [0.0] * found["failed"]
        if values:
            found[name] = round(statistics.fmean(values), decimals)
    faced = [trial["two_faced"] for trial in whole if "two_faced" in trial]
    found["two_faced"] = f"{sum(faced)} of {len(faced)}"
    ratios: dict[str, list[float]] = {}
    for trial in whole:
        if "roughness_ratio" in trial:
            ratios.setdefault(trial["category"], []).append(trial["roughness_ratio"])
    if ratios:
        by_category = {category: statistics.fmean(some) for category, some in sorted(ratios.items())}
        smooth = sum(ratio <= SMOOTH_RATIO for ratio in by_category.values())
        found["smooth"] = f"{smooth} of {len(by_category)}"
        found["ratios"] = {category: round(ratio, 3) for category, ratio in by_category.items()}
    return found


def table(summary: dict[str, dict]) -> str:
    """Return a Markdown table with one row per setting. A cell without measurements is empty."""
    columns = [(COST, name) for name in ("coarse_ms", "fine_ms", "peak_mb")]
    for stage, means in MEANS.items():
        if any(stage in record for record in summary.values()):
            extra = ["smooth"] if stage == SHAPE else []
            names = ["trials", *(name for name, _ in means), *extra, "two_faced"]
            columns += [(stage, name) for name in names]
    lines = [
        "| setting | " + " | ".join(f"{stage}: {name}" for stage, name in columns) + " |",
        "| --- " * (len(columns) + 1) + "|",
    ]
    for setting, record in summary.items():
        cells = [record.get(stage, {}).get(name) for stage, name in columns]
        lines.append(f"| {setting} | " + " | ".join("" if c is None else str(c) for c in cells) + " |")
    return "\n".join(lines)


def contact_sheet(results: Sequence[dict], settings: Sequence[str], runs: Path, path: Path) -> None:
    """Write an image with a row for each (stage, category, seed) and a column for each setting.

    Failed trials are grey.
    """
    shown = [result for result in results if result["stage"] != COST]
    rows = list(dict.fromkeys((r["stage"], r["category"], r["seed"]) for r in shown))
    if not rows:
        return
    rows.sort()
    width, height = TILE
    sheet = Image.new("RGB", (width * len(settings), LABEL + (height + LABEL) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, setting in enumerate(settings):
        draw.text((width * column + 4, 6), setting, fill="black")
    for result in shown:
        row = rows.index((result["stage"], result["category"], result["seed"]))
        corner = (width * settings.index(result["setting"]), LABEL + (height + LABEL) * row)
        picture = runs / str(result["name"]) / "picture.png"
        tile = Image.new("RGB", TILE, "lightgrey")
        if picture.is_file():
            tile = Image.open(picture).convert("RGB").resize(TILE)
        sheet.paste(tile, corner)
        ratio = result.get("roughness_ratio")
        text = f"{result['category']} {result['seed']}" + (f": {ratio:.2f}" if ratio else "")
        right = result.get("recognised", False)
        draw.text((corner[0] + 4, corner[1] + height + 4), text, fill="black" if right else "red")
    sheet.save(path, quality=88)
