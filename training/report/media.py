"""Pictures and videos of a run, reduced for embedding in a page."""

import io
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeVar

from PIL import Image

from configs.run import LATLONG
from training.numbered_files import numbered_files
from training.report.crop import WHOLE, Box, crop_cells, joined, object_box
from training.report.page import data_uri, embedded_json, escape, link

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

STILL_WIDTH, STILLS_BYTES, MOST_STILLS = 1280, 2_100_000, 24
STILL_VIEWS = 4
# Rows of a sheet of stills whose background is not white, so they are not searched for the object.
NOT_ON_WHITE = (LATLONG, "mask")
VIDEO_BYTES = 900_000


@dataclass(frozen=True)
class Picture:
    """A picture that is embedded in a page: size in pixels, names of its rows, JPEG bytes."""

    width: int
    height: int
    rows: tuple[str, ...]
    content: bytes

    @property
    def uri(self) -> str:
        return data_uri("image/jpeg", self.content)


def shrunk(path: Path | str, width: int, quality: int = 82, box: Box = WHOLE) -> Picture | None:
    """Return a copy of a sheet of stills, at most `width` pixels wide, with every view cropped to `box`.

    If the picture cannot be read, a warning is logged and None is returned. Results are cached. The key
    contains the path and the modification time.
    """
    path = Path(path)
    try:
        return _shrunk(path, path.stat().st_mtime_ns, width, quality, box)
    except Exception as error:  # Pillow raises errors of many types for damaged and for very large pictures.
        _warn_once(f"warning: {path} is not shown in the report: {error}")
        return None


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def sheet_box(paths: Iterable[Path]) -> Box:
    """Return the box that contains the object in all sheets of stills. Damaged files are skipped."""

    def box_of(path: Path) -> Box | None:
        try:
            return _sheet_box(path, path.stat().st_mtime_ns)
        except Exception:  # Pillow raises errors of many types. `shrunk` logs the warning for this file.
            return None

    return joined(box_of(path) for path in paths)


def _open_sheet(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    """Open a sheet of stills. Return the picture and the names of its rows."""
    with Image.open(path) as image:
        rows = tuple(name for name in str(image.info.get("rows", "")).split(",") if name)
        return image.convert("RGB"), rows


@lru_cache(maxsize=1024)
def _sheet_box(path: Path, changed: int) -> Box | None:
    image, rows = _open_sheet(path)
    views = [number for number, name in enumerate(rows or ("",)) if name not in NOT_ON_WHITE]
    return object_box(image, STILL_VIEWS, max(len(rows), 1), views)


@lru_cache(maxsize=256)
def _shrunk(path: Path, changed: int, width: int, quality: int, box: Box) -> Picture:
    image, rows = _open_sheet(path)
    if box != WHOLE:
        maps = [number for number, name in enumerate(rows) if name == LATLONG]
        image = crop_cells(image, STILL_VIEWS, max(len(rows), 1), box, maps)
    if image.width > width:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Picture(image.width, image.height, rows, buffer.getvalue())


def spread(items: list[Item], most: int) -> list[Item]:
    """Select at most `most` evenly spaced items, including the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def _readable(paths: list[Path]) -> list[tuple[Path, Picture]]:
    """Return the readable pictures, cropped to the object and reduced to STILL_WIDTH."""
    box = sheet_box(paths)
    pictures = [(path, shrunk(path, STILL_WIDTH, box=box)) for path in paths]
    return [(path, picture) for path, picture in pictures if picture is not None]


def stills_up_to(folder: Path, step: int) -> list[Path]:
    """Return the stills up to `step`. Stills of later steps belong to an earlier run."""
    return [path for number, path in numbered_files(folder, ".png") if number <= step]


def slider(paths: list[Path]) -> str:
    """Return HTML of the stills with a slider to select the step.

    If the files contain the names of their rows, a menu selects the layer. The HTML is empty without stills.
    If the total size exceeds STILLS_BYTES, fewer stills are used.
    """
    chosen = _readable(spread(paths, MOST_STILLS))
    while len(chosen) > 2 and sum(len(picture.content) for _, picture in chosen) > STILLS_BYTES:
        chosen = spread(chosen, max(2, len(chosen) * 3 // 4))
    pictures = [picture for _, picture in chosen]
    if not chosen:
        return ""
    stills = [
        {
            "step": int(path.stem),
            "rows": max(len(picture.rows), 1),
            "width": picture.width,
            "height": picture.height,
            "picture": picture.uri,
        }
        for path, picture in chosen
    ]
    last = len(stills) - 1
    layers = "".join(
        f'<label><input type="radio" name="layer" value="{row}"{" checked" if row == 0 else ""}> '
        f"{escape(name)}</label>"
        for row, name in enumerate(pictures[-1].rows)
    )
    choice = f'<fieldset aria-label="Layer">{layers}</fieldset>' if len(pictures[-1].rows) > 1 else ""
    return (
        '<div class="stills"><div class="still"><img alt=""></div><div class="controls">'
        f'<input type="range" min="0" max="{last}" value="{last}" aria-label="Step of the still">'
        f"<output></output>{choice}</div>"
        f'<script type="application/json">{embedded_json(stills)}</script></div>'
    )


def video(out_dir: Path, names: list[str], caption: str) -> str:
    """Return the first existing file of `names` as an HTML figure. A file over VIDEO_BYTES is only linked."""
    path = next((out_dir / name for name in names if (out_dir / name).is_file()), None)
    if path is None:
        return ""
    where = link(str(path.relative_to(out_dir)))
    size = path.stat().st_size
    if size > VIDEO_BYTES:
        shown = f'<div class="empty"><a href="{where}">{escape(path.name)}, {size / 1e6:.1f} MB</a></div>'
    elif path.suffix == ".gif":
        shown = (
            f'<img class="video" alt="{escape(caption)}" src="{data_uri("image/gif", path.read_bytes())}">'
        )
    else:
        shown = (
            f'<video class="video" controls loop muted playsinline aria-label="{escape(caption)}" '
            f'src="{data_uri("video/mp4", path.read_bytes())}"></video>'
        )
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"
