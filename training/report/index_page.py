"""The overview page of a sweep: turntables, values, state, links and commands of each result.

The page is one HTML file without scripts. A browser can open it from disk. Pictures are embedded, and links
are relative.
"""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image

from render.image_io.atomic import write_text
from training.numbered_files import numbered_files
from training.report.crop import crop_view, joined, object_box
from training.report.page import POLICY, data_uri, escape, link

SIDE, FRAMES, QUALITY = 144, 8, 82
RELOAD_SECONDS = 15
STILL_VIEWS = 4

STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; } body { margin: 1.5rem auto;
max-width: 100rem; padding: 0 1rem; overflow-wrap: anywhere; } h1 { font-size: 1.3rem; margin: 0; } .cards {
display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 1rem; } .card {
border: 1px solid #8885; border-radius: 8px; padding: .7rem; min-width: 0; } .views { display: flex;
flex-wrap: wrap; gap: .5rem; min-height: SIDEpx; } summary { cursor: pointer; margin-top: .4rem; } pre {
margin: .2rem 0 .5rem; padding: .4rem .5rem; background: #8882; border-radius: 4px; white-space: pre-wrap; }
figure { margin: 0; font-size: .8rem; } .turn { width: SIDEpx; height: SIDEpx; background: #fff 0 0 / auto
100% no-repeat; border-radius: 4px; } .turn { animation: turn 3.2s steps(var(--frames)) infinite paused; }
.card:hover .turn { animation-play-state: running; } @keyframes turn { to { background-position-x:
calc(var(--frames) * -SIDEpx); } } dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .6rem; margin:
.5rem 0 0; } dt { opacity: .65; } dd { margin: 0; } .state { font-weight: 600; } .error { margin: .4rem 0 0;
color: #d33; } .done { color: #2a8a3c; } .failed { color: #d33; } .running { color: #2474d6; } .stopped {
color: #b87800; } """.replace("SIDE", str(SIDE)).strip()


@dataclass(frozen=True)
class Stage:
    """One run of a result: its label, its folder and the layer that its turntable shows."""

    label: str
    folder: Path
    layer: str


@dataclass(frozen=True)
class Card:
    """One result of a sweep.

    changed: the keys whose values differ from those of other results. note: one line about the state.
    next_commands: a dict from label to a shell command that continues with this result.
    """

    name: str
    changed: Mapping[str, str]
    state: str
    note: str
    stages: Sequence[Stage]
    next_commands: Mapping[str, str] = field(default_factory=dict)


def write_index(path: Path, title: str, subtitle: str, cards: Sequence[Card], live: bool) -> None:
    """Write the page atomically.

    live: whether trials are still running. If true, the browser reloads the page at regular intervals.
    """
    counts = Counter(card.state for card in cards)
    reload = f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' if live else ""
    summary = ", ".join(f"{number} {state}" for state, number in counts.items())
    body = "\n".join(_card(card, path.parent) for card in cards)
    write_text(
        path,
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{reload}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>\n'
        f"<style>\n{STYLE}\n</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(subtitle)}</p>\n"
        f"<p>{len(cards)} results: {summary}. Point at a picture to turn it.</p>\n"
        f'<div class="cards">\n{body}\n</div></body></html>\n',
    )


def thumbnail(stage: Stage) -> tuple[bytes, int] | None:
    """Return a JPEG strip of square views and the number of views, or None if there is no picture.

    The views come from the turntable if it exists, otherwise from the newest still (four views), otherwise
    from the newest frame of the training video.
    """
    turntable = numbered_files(stage.folder / "validate" / stage.layer, ".png")
    if len(turntable) >= FRAMES:
        step = len(turntable) / FRAMES
        return _strip(tuple(_dated(turntable[int(k * step)][1]) for k in range(FRAMES)), 1)
    stills = numbered_files(stage.folder / "stills", ".png")
    frames = numbered_files(stage.folder / "video_frames", ".jpg")
    if stills and not (frames and frames[-1][0] > stills[-1][0]):
        return _strip((_dated(stills[-1][1]),), STILL_VIEWS)
    return _strip((_dated(frames[-1][1]),), 1) if frames else None


def _dated(path: Path) -> tuple[Path, int]:
    return path, path.stat().st_mtime_ns


@lru_cache(maxsize=4096)
def _strip(files: tuple[tuple[Path, int], ...], views: int) -> tuple[bytes, int] | None:
    """Join the views side by side. Only the top row of a sheet of stills is used.

    Results are cached. The key contains the paths and the modification times.
    """
    pictures = []
    try:
        for path, _ in files:
            with Image.open(path) as image:
                picture = image.convert("RGB")
            width = picture.width // views
            for k in range(views):
                height = picture.height if views == 1 else min(width, picture.height)
                pictures.append(picture.crop((k * width, 0, (k + 1) * width, height)))
    except Exception:  # The picture may be incomplete, damaged, or too large for Pillow.
        return None
    # All views use the same box, so the size of the object is constant in the turntable.
    box = joined(object_box(picture) for picture in pictures)
    squares = [_square(crop_view(picture, box)) for picture in pictures]
    strip = Image.new("RGB", (SIDE * len(squares), SIDE), "white")
    for k, square in enumerate(squares):
        strip.paste(square, (k * SIDE, 0))
    buffer = io.BytesIO()
    strip.save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue(), len(squares)


def _square(picture: Image.Image) -> Image.Image:
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    if max(picture.size) < SIDE:
        factor = SIDE / max(picture.size)
        picture = picture.resize((round(picture.width * factor), round(picture.height * factor)))
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square


def _card(card: Card, base: Path) -> str:
    views = "".join(_view(stage, base) for stage in card.stages)
    changed = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in card.changed.items()
    )
    kind = "error" if card.state == "failed" else "note"
    note = f'<p class="{kind}">{escape(card.note)}</p>' if card.note else ""
    return (
        f'<div class="card" id="{escape(card.name)}"><div class="views">{views}</div>\n'
        f'<dl><dt>state</dt><dd class="state {card.state}">{card.state}</dd>{changed}</dl>{note}'
        f"{_next_commands(card)}</div>"
    )


def _next_commands(card: Card) -> str:
    """Return HTML of the commands that continue with a result, in a collapsed details element."""
    commands = "".join(
        f"{escape(name)}<pre>{escape(command)}</pre>" for name, command in card.next_commands.items()
    )
    return f"<details><summary>Continue with this result</summary>{commands}</details>" if commands else ""


def _view(stage: Stage, base: Path) -> str:
    strip, picture = thumbnail(stage), '<div class="turn"></div>'
    if strip is not None:
        picture = (
            f'<div class="turn" role="img" aria-label="{escape(stage.label)}" '
            f'style="--frames:{strip[1]};background-image:url({data_uri("image/jpeg", strip[0])})"></div>'
        )
    places = {stage.label: stage.folder, "report": stage.folder / "report.html"}
    places["GLB"] = stage.folder / "dmtet_mesh" / "mesh.glb"
    links = " · ".join(
        f'<a href="{link(os.path.relpath(place, base))}{"/" * place.is_dir()}">{escape(name)}</a>'
        for name, place in places.items()
        if place.exists()
    )
    return f"<figure>{picture}<figcaption>{links}</figcaption></figure>"
