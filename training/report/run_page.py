"""report.html of a run: model, videos, stills, curves, times, config and commands."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from render.shade.light import resolve_map
from training.report.curves import PhaseTime, curves, draw, groups, phase_times, read_log
from training.report.media import slider, stills_up_to, video
from training.report.model_viewer import LIGHTER, embed, environment_map, viewer
from training.report.page import document, escape, link, section, table

REPORT_FILE, CONFIG_FILE = "report.html", "config.json"
MODEL_FILE = "dmtet_mesh/mesh.glb"
FILES = (
    MODEL_FILE,
    "dmtet_mesh/mesh.obj",
    "dmtet_mesh/mesh.mtl",
    "dmtet_mesh/texture_kd.png",
    "dmtet_mesh/texture_ks.png",
    "dmtet_mesh/texture_n.png",
    "dmtet_mesh/probe.hdr",
    "turntable.mp4",
    "video_log.mp4",
    "log.jsonl",
    "config.json",
)
PLOT_NAMES = {
    "loss": "Loss",
    "gradient_norm": "Gradient norm",
    "gradient_norm_2": "Gradient norm, second prior",
    "lora_loss": "LoRA loss",
    "normal_consistency": "Normal consistency",
    "laplacian": "Laplacian",
}


@dataclass(frozen=True)
class Setting:
    """A key of the config. Values are JSON. changed: whether the value differs from the default."""

    key: str
    value: str
    default: str
    meaning: str
    changed: bool


@dataclass(frozen=True)
class RunInfo:
    """The part of the report that is constant during a run.

    orbit: whether a turntable is rendered at the end. resolved_config: all keys with their values, as the
    JSON of a config that repeats the run.
    """

    out_dir: Path
    title: str
    kind: str
    last_step: int
    orbit: bool
    settings: Sequence[Setting]
    commands: Mapping[str, str]
    machine: Mapping[str, str]
    resolved_config: str
    envmap: str | None = None
    env_scale: float = 1.0


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    name: running, done, exported, stopped or failed. doing: the current activity, or the error. seconds: a
    dict from each part outside the training loop to its duration. written: seconds since 1970.
    """

    name: str
    step: int
    doing: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    written: float = 0.0


def run_page(info: RunInfo, state: RunState, model_bytes: int = LIGHTER) -> str:
    """Build the page as HTML from the current files in info.out_dir.

    If a model exceeds `model_bytes` (deflated), the page shows a note instead.
    """
    records = [record for record in read_log(info.out_dir / "log.jsonl") if record["step"] <= state.step]
    phases = phase_times(records)
    model_and_videos, scripts = _model_and_videos(info, state, model_bytes)
    parts = [
        _header(info, state),
        "<main>",
        model_and_videos,
        section(
            "Stills over time",
            slider(stills_up_to(info.out_dir / "stills", state.step)),
            "Four views, a quarter turn apart.",
        ),
        section(
            "Curves",
            _curves(records, phases),
            "Line: mean over neighbouring steps. Band: 10th to 90th percentile.",
        ),
        '<div class="columns row">',
        section("Time", _times(phases, state)),
        section("Ran on", table(("", ""), [(escape(k), escape(v)) for k, v in info.machine.items()])),
        "</div>",
        section("Config", _settings(info.settings)),
        section("Commands", _commands(info.commands)),
        section("Files", _files(info.out_dir)),
        "</main>",
    ]
    return document(f"{info.title} – {state.name}", "".join(parts), scripts)


def _header(info: RunInfo, state: RunState) -> str:
    moment = datetime.datetime.fromtimestamp(state.written).astimezone().strftime("%Y-%m-%d %H:%M %Z")
    running = state.name == "running"
    doing = f", {escape(state.doing)}" if running and state.doing else ""
    lines = [
        f"<header><h1>{escape(info.title)}</h1>",
        f'<p><span class="state {escape(state.name)}">{escape(state.name)}</span> '
        f"{escape(info.kind)}, step {state.step} of {info.last_step}{doing}. {escape(info.out_dir)}, "
        f"{escape(moment)}</p>",
    ]
    if running:
        lines.append(
            f'<progress max="{info.last_step}" value="{state.step}" aria-label="Steps done"></progress>'
            f'<p class="watch" data-written="{int(state.written * 1000)}">The run is in progress; this page '
            'was <span id="age"></span>. Reload it to see more. '
            '<label><input type="checkbox" id="watch"> reload every 20 seconds</label></p>'
        )
    elif state.doing:
        lines.append(f'<p class="reason">{escape(state.doing)}</p>')
    return "".join(lines) + "</header>"


def _model_and_videos(info: RunInfo, state: RunState, model_bytes: int) -> tuple[str, list[str]]:
    """Return HTML and scripts for model and videos of an exported run.

    Files of an earlier run are omitted.
    """
    mesh = info.out_dir / MODEL_FILE
    if state.name not in ("done", "exported") or not mesh.is_file():
        return "", []
    model, scripts = viewer(mesh, f"3D model: {info.title}", model_bytes, _environment(info))
    videos = [video(info.out_dir, ["video_log.mp4"], "The optimisation")]
    if info.orbit and state.name == "done":
        videos.insert(0, video(info.out_dir, ["turntable.mp4", "validate/shaded.gif"], "Once around"))
    videos = "".join(videos)
    wide = f'<section class="{"wide" if videos else ""}"><h2>Model</h2>{model}</section>'
    narrow = f'<section class="narrow"><h2>Videos</h2>{videos}</section>' if videos else ""
    return f'<div class="look">{wide}{narrow}</div>', scripts


def prepare_model(info: RunInfo) -> None:
    """Compress the exported model and its environment map. `run_page` uses the cached results."""
    if (info.out_dir / MODEL_FILE).is_file():
        embed(info.out_dir / MODEL_FILE)
        _environment(info)


def _environment(info: RunInfo) -> bytes | None:
    """Return the environment map for the viewer, or None if the map cannot be read.

    The map is the exported probe.hdr if it exists, otherwise the map in the config.
    """
    probe = info.out_dir / "dmtet_mesh" / "probe.hdr"
    try:
        # The probe already includes env_scale and the changes made by learn_light, so it is not scaled again.
        path, scale = (probe, 1.0) if probe.is_file() else (resolve_map(info.envmap), info.env_scale)
        return environment_map(path, path.stat().st_mtime_ns, scale)
    except (OSError, ValueError):
        return None


def _curves(records: Sequence[Mapping[str, object]], phases: Sequence[PhaseTime]) -> str:
    drawn = []
    for names, members in groups(records):
        inside = [phase for phase in phases if phase.name in names]
        for curve in curves(members):
            name = PLOT_NAMES.get(curve.name, curve.name)
            drawn.append(draw(curve, inside, f"{name}, {' and '.join(names)}"))
    return f'<div class="columns">{"".join(drawn)}</div>' if drawn else ""


def _times(phases: Sequence[PhaseTime], state: RunState) -> str:
    rows = [
        (escape(phase.name), f"{phase.first}–{phase.last}", _duration(phase.seconds), _rate(phase))
        for phase in phases
    ]
    rows += [(escape(name), "", _duration(seconds), "") for name, seconds in state.seconds.items()]
    spent = [*(phase.seconds for phase in phases), *state.seconds.values()]
    if rows:
        rows.append(("all", "", _duration(None if None in spent else sum(spent)), ""))
    return table(("phase", "steps", "time", "steps a second"), rows, "numbers") if rows else ""


def _rate(phase: PhaseTime) -> str:
    return f"{phase.steps / phase.seconds:.2f}" if phase.seconds else "–"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{round(seconds / 60) // 60} h {round(seconds / 60) % 60} min"


def _settings(settings: Sequence[Setting]) -> str:
    """Return HTML of the keys that differ from their defaults, and a collapsed table of all keys."""
    changed = [setting for setting in settings if setting.changed]
    few = table(("key", "value", "default"), [_setting(setting) for setting in changed])
    every = [(*_setting(setting), escape(setting.meaning)) for setting in settings]
    everything = table(("key", "value", "default", "meaning"), every)
    return (
        f'<p class="note">{len(changed)} of {len(settings)} keys <span class="changed">differ</span> from '
        f"their defaults.</p>{few}<details><summary>All {len(settings)} keys</summary>{everything}</details>"
    )


def _setting(setting: Setting) -> tuple[str, str, str]:
    value = f"<code>{escape(setting.value)}</code>"
    if setting.changed:
        value = f'<span class="changed">{value}</span>'
    return f"<code>{escape(setting.key)}</code>", value, f"<code>{escape(setting.default)}</code>"


def _commands(commands: Mapping[str, str]) -> str:
    return "".join(
        f'<h3>{escape(name)}</h3><div class="command"><pre tabindex="0">{escape(command)}</pre>'
        '<button type="button" data-copy>Copy</button></div>'
        for name, command in commands.items()
    )


def _files(out_dir: Path) -> str:
    there = [(name, (out_dir / name).stat().st_size) for name in FILES if (out_dir / name).is_file()]
    items = "".join(
        f'<li><a href="{link(name)}">{escape(name)}</a> {_bytes(size)}</li>' for name, size in there
    )
    return f'<ul class="files">{items}</ul>' if items else ""


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(size // 1000, 1)} kB"
