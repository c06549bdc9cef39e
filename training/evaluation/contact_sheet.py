"""Contact sheet with the views, the prompt and the evaluation of each asset.

The colour of the text shows whether the evaluation is correct.
"""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from render.image_io.image import encode_normal, to_bytes
from training.evaluation.r_precision import Evaluation
from training.evaluation.views import VIEWS

# Indices of the shown views: front, between front and side, back.
SHOWN_VIEWS = (0, 1, VIEWS // 2)
SIDE, LINE, GAP = 144, 20, 8
LINES = 3
RIGHT, WRONG, TEXT = "#1e8449", "#c0392b", "#202020"


def check_name(path: Path) -> None:
    """Raise ValueError if the name does not end in .jpg, .jpeg or .png."""
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise ValueError(f"--sheet {path}: name a .jpg or .png file")


def write_contact_sheet(
    path: Path, evaluations: list[Evaluation], assets: list[dict], columns: int = 4
) -> None:
    """Write a sheet with one cell per asset, in order. assets: the records of the report."""
    columns = min(columns, len(evaluations))
    rows = -(-len(evaluations) // columns)
    width, height = len(SHOWN_VIEWS) * SIDE + GAP, SIDE + LINES * LINE + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    for number, (evaluation, asset) in enumerate(zip(evaluations, assets, strict=True)):
        corner = (GAP + number % columns * width, GAP + number // columns * height)
        sheet.paste(_pictures(evaluation), corner)
        _caption(ImageDraw.Draw(sheet), corner, asset)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=90)


def _pictures(evaluation: Evaluation) -> Image.Image:
    """Return the views SHOWN_VIEWS side by side on white, or an empty grey image if the evaluation failed."""
    strip = Image.new(
        "RGB", (len(SHOWN_VIEWS) * SIDE, SIDE), "#f2f2f2" if evaluation.views is None else "white"
    )
    if evaluation.views is None:
        return strip
    for place, view in enumerate(SHOWN_VIEWS):
        image = Image.fromarray(_pixels(evaluation, view)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        strip.paste(image, (place * SIDE, 0))
    return strip


def _pixels(evaluation: Evaluation, view: int) -> UInt8[np.ndarray, "S S 3"]:
    views = evaluation.views
    empty = 1 - views.mask[view].permute(1, 2, 0)
    if views.shaded is None:
        # The background has normal 0, which is encoded as grey. Adding 0.5 makes the background white.
        image = encode_normal(views.normal[view].permute(1, 2, 0)) + 0.5 * empty
    else:
        image = views.shaded[view].permute(1, 2, 0) + empty
    return to_bytes(image)


def _caption(draw: ImageDraw.ImageDraw, corner: tuple[int, int], asset: dict) -> None:
    """Draw the prompt, the evaluation or the failure, and "two-faced" if two views show a front."""
    font = ImageFont.load_default(13)
    lines = [[(asset["prompt"], TEXT)], [(asset["failure"], WRONG)]]
    if not asset["failure"]:
        lines[1] = [_result_text(asset, what) for what in asset["evaluation"]]
    if asset.get("two_faced"):
        lines.append([("two-faced", WRONG)])
    for number, parts in enumerate(lines):
        left, top = corner[0], corner[1] + SIDE + 2 + number * LINE
        for text, colour in parts:
            text = _truncate(draw, text, font)
            draw.text((left, top), text, fill=colour, font=font)
            left += round(draw.textlength(text + "    ", font))


def _result_text(asset: dict, what: str) -> tuple[str, str]:
    """Return text and colour of the evaluated category or material.

    If the prompt contains no material, the evaluated material has the colour TEXT.
    """
    text = f"{asset['evaluation'][what].replace('_', ' ')} {asset['probability'][what]:.2f}"
    if f"{what}_right" not in asset:
        return text, TEXT
    return text, RIGHT if asset[f"{what}_right"] else WRONG


def _truncate(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont) -> str:
    """Truncate the text to the width of a cell."""
    if draw.textlength(text, font) <= len(SHOWN_VIEWS) * SIDE:
        return text
    while draw.textlength(text + "…", font) > len(SHOWN_VIEWS) * SIDE:
        text = text[:-1]
    return text + "…"
