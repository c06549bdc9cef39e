"""Plot the share of two-faced shapes against the share of front views in the prior's training data.

Several remedies are compared. A two-faced shape shows a front both at azimuth 0 and at azimuth 180 degrees.

`python3 -m data.make_tiny_sd.train --front-share SHARE --out out/front-SHARE` trains a prior. The trained
priors are not part of the repository.
"""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw

from training.evaluation.benchmark.settings import SHAPE

# Shares of front views in the training data of the priors.
FRONT_SHARES = ("0.5", "0.75", "0.9", "0.99")
REMEDIES: dict[str, dict[str, object]] = {
    "nothing": {"add_directional_text": False},
    "view words": {"add_directional_text": True},
    "Perp-Neg": {"add_directional_text": True, "perp_neg": True},
    "flipped normals": {"add_directional_text": False, "if_flip_the_normal": True},
}
COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#7d3c98")
WIDTH, HEIGHT, MARGIN = 640, 400, 56


def janus_settings() -> dict[str, dict[str, object]]:
    """Return a setting for each prior and remedy, named for example "0.9, Perp-Neg"."""
    return {
        f"{share}, {remedy}": {"sd_model": f"out/front-{share}", **values}
        for share in FRONT_SHARES
        for remedy, values in REMEDIES.items()
    }


def two_faced_shares(summary: Mapping[str, dict]) -> dict[str, list[tuple[float, float]]]:
    """Return a list of (share of front views, share of two-faced shapes) for each remedy."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for share in FRONT_SHARES:
        for remedy in REMEDIES:
            stage = summary.get(f"{share}, {remedy}", {}).get(SHAPE, {})
            faced, _, measured = stage.get("two_faced", "0 of 0").split()
            if int(measured):
                curves.setdefault(remedy, []).append((float(share), int(faced) / int(measured)))
    return curves


def draw_curve(summary: Mapping[str, dict], path: Path) -> None:
    """Draw `two_faced_shares`, one line per remedy. Both axes are linear."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    low, high = float(FRONT_SHARES[0]), 1.0

    def pixel(point: tuple[float, float]) -> tuple[float, float]:
        across, up = (point[0] - low) / (high - low), point[1]
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        draw.line([pixel((low, level)), pixel((high, level))], fill="#d0d0d0")
        draw.text((MARGIN - 40, pixel((low, level))[1] - 6), f"{level:.0%}", fill="black")
    for share in FRONT_SHARES:
        draw.text(
            (pixel((float(share), 0))[0] - 12, HEIGHT - MARGIN + 8), f"{float(share):.0%}", fill="black"
        )
    draw.text((WIDTH // 2 - 100, HEIGHT - 24), "front views in the training data", fill="black")
    draw.text((8, 8), "two-faced shapes", fill="black")
    for number, (remedy, points) in enumerate(two_faced_shares(summary).items()):
        # Each line is drawn 2 pixels higher than the previous one, so that lines with equal values stay
        # visible.
        line = [(x, y - 2 * number) for x, y in map(pixel, points)]
        draw.line(line, fill=COLOURS[number], width=3)
        for x, y in line:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=COLOURS[number])
        draw.text((MARGIN + 130 * number, 26), remedy, fill=COLOURS[number])
    picture.save(path)
