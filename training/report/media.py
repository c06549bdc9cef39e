"""Pictures and films of a run, small enough to stand inside a page."""

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from training.report.page import data_uri, embedded_json, escape, link

STILL_WIDTH, STILLS_BYTES, MOST_STILLS = 1280, 2_100_000, 24
FILM_BYTES = 900_000


@dataclass(frozen=True)
class Picture:
    """A picture as a page holds it: size in pixels, the names of its rows, its JPEG bytes."""

    width: int
    height: int
    rows: tuple[str, ...]
    content: bytes

    @property
    def uri(self) -> str:
        return data_uri("image/jpeg", self.content)


def shrunk(path: Path | str, width: int, quality: int = 82) -> Picture:
    """A picture file no wider than `width`; made once for each state of the file."""
    path = Path(path)
    return _shrunk(path, path.stat().st_mtime_ns, width, quality)


@lru_cache(maxsize=256)
def _shrunk(path: Path, changed: int, width: int, quality: int) -> Picture:
    with Image.open(path) as image:
        rows = tuple(name for name in str(image.info.get("rows", "")).split(",") if name)
        image = image.convert("RGB")
    if image.width > width:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Picture(image.width, image.height, rows, buffer.getvalue())


def spread(paths: list[Path], most: int) -> list[Path]:
    """At most `most` of them, evenly over the whole, the first and the last among them."""
    if len(paths) <= most:
        return paths
    return [paths[round(k * (len(paths) - 1) / (most - 1))] for k in range(most)]


def stills_up_to(folder: Path, step: int) -> list[Path]:
    """The stills of the run so far: older files of a longer run that is gone are left out."""
    numbered = sorted((int(path.stem), path) for path in folder.glob("[0-9]*.png"))
    return [path for number, path in numbered if number <= step]


def slider(paths: list[Path]) -> str:
    """The stills (named by their step) under a slider, with a choice of the layer where they name their
    rows; empty without stills. Fewer are taken where all would be more than STILLS_BYTES."""
    chosen = spread(paths, MOST_STILLS)
    pictures = [shrunk(path, STILL_WIDTH) for path in chosen]
    while len(chosen) > 2 and sum(len(picture.content) for picture in pictures) > STILLS_BYTES:
        chosen = spread(chosen, max(2, len(chosen) * 3 // 4))
        pictures = [shrunk(path, STILL_WIDTH) for path in chosen]
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
        for path, picture in zip(chosen, pictures, strict=True)
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


def film(out_dir: Path, names: list[str], caption: str) -> str:
    """The first of the files that is there, as a figure: inside the page, or as a link where it is large."""
    path = next((out_dir / name for name in names if (out_dir / name).is_file()), None)
    if path is None:
        return ""
    where = link(str(path.relative_to(out_dir)))
    size = path.stat().st_size
    if size > FILM_BYTES:
        shown = f'<div class="empty"><a href="{where}">{escape(path.name)}, {size / 1e6:.1f} MB</a></div>'
    elif path.suffix == ".gif":
        shown = f'<img class="film" alt="{escape(caption)}" src="{data_uri("image/gif", path.read_bytes())}">'
    else:
        shown = (
            f'<video class="film" controls loop muted playsinline aria-label="{escape(caption)}" '
            f'src="{data_uri("video/mp4", path.read_bytes())}"></video>'
        )
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"
