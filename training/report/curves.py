"""Read log.jsonl, compute phase times and downsampled curves, and draw the curves as SVG."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.report.page import embedded_json, escape

Record = Mapping[str, object]

# Fields that every line of the log has. All other fields are plotted.
FRAME = {"step", "phase", "seconds"}
BUCKETS, FEWEST = 180, 4
# Size of the drawing and margins around the curve, in SVG units.
WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 18, 22
# A curve whose maximum exceeds its minimum by more than this factor has a logarithmic axis.
LOG_RATIO = 30


@dataclass(frozen=True)
class PhaseTime:
    """First step, last step and seconds of a phase. The seconds are None if the log has no times."""

    name: str
    first: int
    last: int
    seconds: float | None

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Curve:
    """A logged value as a function of the step, with one point per bucket of consecutive steps.

    A point has the last step of the bucket, the mean of its values, and their 10th and 90th percentile.
    """

    name: str
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def read_log(path: Path | str) -> list[Record]:
    """Read the valid lines of a log file. A run may still append to the file.

    The list is empty if the file does not exist.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [record for line in lines if (record := parse_line(line)) is not None]


def parse_line(line: str) -> dict[str, object] | None:
    """Parse a line of log.jsonl. Return None if step or phase is missing or "seconds" is not a number."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(record, dict) and type(record.get("step")) is int):
        return None
    well_formed = isinstance(record.get("phase"), str) and _is_number(record.get("seconds", 0.0))
    return record if well_formed else None


def phase_times(records: Sequence[Record]) -> list[PhaseTime]:
    """Return the phases in order. A phase's time starts at the end of the previous phase."""
    phases: list[PhaseTime] = []
    start, before = 0, 0.0
    for number, record in enumerate(records):
        follower = records[number + 1] if number + 1 < len(records) else None
        if follower is not None and follower["phase"] == record["phase"]:
            continue
        seconds = record.get("seconds")
        spent = None if seconds is None or before is None else seconds - before
        phases.append(PhaseTime(str(record["phase"]), records[start]["step"], record["step"], spent))
        start, before = number + 1, seconds
    return phases


def groups(records: Sequence[Record]) -> list[tuple[list[str], list[Record]]]:
    """Group the phases that log the same values. Return the phase names and the records of each group."""
    found: dict[frozenset[str], tuple[list[str], list[Record]]] = {}
    for record in records:
        phases, members = found.setdefault(frozenset(record.keys() - FRAME), ([], []))
        if record["phase"] not in phases:
            phases.append(str(record["phase"]))
        members.append(record)
    return list(found.values())


def curves(records: Sequence[Record]) -> list[Curve]:
    """Return a curve for each logged value. Omit non-finite values and curves without finite values."""
    names = sorted({name for record in records for name in record.keys() - FRAME}, key=_order)
    found = []
    for name in names:
        pairs = [(record["step"], record[name]) for record in records if _is_number(record.get(name))]
        if pairs:
            found.append(downsample(name, *zip(*pairs, strict=True)))
    return found


def downsample(name: str, steps: Sequence[int], values: Sequence[float], buckets: int = BUCKETS) -> Curve:
    """Return a curve of at most `buckets` points. Each point averages at least FEWEST values if possible."""
    count = max(1, min(buckets, len(values) // FEWEST))
    parts = np.array_split(np.asarray(values, dtype=np.float64), count)
    ends = [int(part[-1]) for part in np.array_split(np.asarray(steps), count)]
    low, high = zip(*(np.percentile(part, (10, 90)).tolist() for part in parts), strict=True)
    return Curve(name, tuple(ends), tuple(float(part.mean()) for part in parts), low, high)


def _order(name: str) -> tuple[bool, str]:
    return name != "loss", name


def _is_number(value: object) -> bool:
    """Return whether a value is a finite number in the range of a float."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Return axis ticks within [low, high]. Their spacing is 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    spacing = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / spacing)
    return [float(f"{spacing * k:.12g}") for k in range(first, math.floor(high / spacing) + 1)]


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return logarithmic axis ticks within [low, high].

    The ticks are powers of ten. If there are many, only every n-th is used. If there are few, 2 and 5 times
    the powers of ten are added.
    """
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    marks = [float(f"{factor}e{power}") for power in powers for factor in factors]
    inside = [mark for mark in marks if low <= mark <= high]
    return inside[:: max(1, math.ceil(len(inside) / most))]


def draw(curve: Curve, phases: Iterable[PhaseTime], caption: str) -> str:
    """Draw the curve as an HTML figure with a caption.

    The SVG shows the mean as a line and the percentiles as a band. The data points are included for the
    tooltip.
    """
    low, high = min(curve.low), max(curve.high)
    logarithmic = low > 0 and high / low > LOG_RATIO
    first, last = curve.steps[0], max(curve.steps[-1], curve.steps[0] + 1)
    if not high > low:
        low, high = low - 0.5 * abs(low) - 1e-9, high + 0.5 * abs(high) + 1e-9

    def x(step: float) -> float:
        return round(LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        a, b, v = (math.log(n) if logarithmic else n for n in (low, high, value))
        return round(TOP + (b - v) / (b - a) * (HEIGHT - TOP - BOTTOM), 1)

    across = [x(step) for step in curve.steps]
    over = [f"{a},{y(v)}" for a, v in zip(across, curve.high, strict=True)]
    under = [f"{a},{y(v)}" for a, v in zip(across, curve.low, strict=True)]
    line = [f"{a},{y(min(max(v, low), high))}" for a, v in zip(across, curve.mean, strict=True)]
    marks = log_ticks(low, high) if logarithmic else ticks(low, high)
    parts = [*[_level(y(value), f"{value:g}") for value in marks]]
    parts += [_step_mark(x(step), f"{step:.0f}") for step in ticks(first, last, 5)]
    parts += [_edge(x(phase.first), phase.name) for phase in phases if first < phase.first < last]
    parts.append(f'<polygon class="band" points="{" ".join(over + under[::-1])}"/>')
    parts.append(f'<polyline class="line" points="{" ".join(line)}"/>')
    parts.append(f'<line class="cross" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/><circle class="dot" r="3.5"/>')
    words = (
        f"{caption}: from {curve.mean[0]:.4g} at step {curve.steps[0]} to {curve.mean[-1]:.4g} at step "
        f"{curve.steps[-1]}" + (", logarithmic axis" if logarithmic else "")
    )
    points = [
        [*map(float, place.split(",")), step, f"{value:.4g}"]
        for place, step, value in zip(line, curve.steps, curve.mean, strict=True)
    ]
    return (
        f'<figure class="curve"><h3>{escape(caption)}</h3>'
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">'
        f'{"".join(parts)}</svg><p class="readout">{escape(words.partition(": ")[2])}</p>'
        f'<script type="application/json">{embedded_json(points)}</script></figure>'
    )


def _level(y: float, label: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{label}</text>'
    )


def _step_mark(x: float, label: str) -> str:
    return f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>'


def _edge(x: float, name: str) -> str:
    return (
        f'<line class="edge" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text x="{x + 4}" y="{TOP - 6}">{escape(name)}</text>'
    )
