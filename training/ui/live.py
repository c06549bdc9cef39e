"""HTML of a run for the page: its state, the newest stills, the curves and the output."""

import re
from collections.abc import Sequence
from pathlib import Path

from training.numbered_files import numbered_files
from training.report.curves import curves, draw, groups, phase_times, read_log
from training.report.media import sheet_box, shrunk
from training.report.page import escape
from training.report.run_page import PLOT_NAMES
from training.sweep.trials import DONE, FAILED
from training.ui.commands import shell_line
from training.ui.job import Job

STILL_WIDTH, CONSOLE_LINES = 900, 12
# The values that are plotted while a run is in progress.
PLOTTED = ("loss",)
# CSS of the page. It includes the styles of the plots, which a report takes from training/report/page.css.
STYLE = """
.ui-live img { width: 100%; border-radius: 6px; background: #fff; }
.ui-live pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; max-height: 14rem;
overflow-y: auto; padding: .5rem; border-radius: 6px; background: #8881; }
.ui-live .state { font-weight: 600; } .ui-live .failed { color: #d33; } .ui-live .done { color: #2a8a3c; }
.ui-live .readout { font-size: .8rem; opacity: .8; margin: 0; } .ui-live h3 { font-size: .95rem; margin: 0; }
.ui-live .curves { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); }
.ui-live figure { margin: .6rem 0; } .plot { width: 100%; } .plot text { font-size: 11px; fill: currentColor;
opacity: .7; } .plot .grid { stroke: #8884; } .plot .edge { stroke: #888; stroke-dasharray: 3 3; }
.plot .band { fill: #2f6f6a30; } .plot .line { fill: none; stroke: #2f8f86; stroke-width: 1.8; }
.plot .cross, .plot .dot { display: none; }
"""


def fingerprint(job: Job | None) -> str:
    """Return a text that changes whenever the HTML of a job changes."""
    if job is None:
        return ""
    files = [job.console, *(folder / "log.jsonl" for folder in job.folders)]
    sizes = [file.stat().st_size if file.exists() else -1 for file in files]
    stills = [str(path) for path in newest_stills(job.folders)]
    return repr((job.started, job.state, sizes, stills))


def newest_stills(folders: Sequence[Path]) -> list[Path]:
    """Return the newest sheet of stills of each run that has stills."""
    found = [numbered_files(folder / "stills", ".png") for folder in folders]
    return [stills[-1][1] for stills in found if stills]


def job_html(job: Job | None) -> str:
    """Return HTML with the state of a job, its command and the end of its output."""
    if job is None:
        return '<div class="ui-live"><p>No run has been started yet.</p></div>'
    state = job.state
    reason = f'<p class="failed">{escape(job.reason)}</p>' if state == FAILED else ""
    tail = "\n".join(_lines(job.output())[-CONSOLE_LINES:])
    return (
        f'<div class="ui-live" data-state="{state}"><p><span class="state {state}">{state}</span> '
        f"{escape(job.title)}{_progress(job)}</p>{reason}"
        f'<p title="in {escape(Path.cwd())}">The command of this run:</p>'
        f'<pre class="command">{escape(shell_line(job.argv))}</pre><pre>{escape(tail)}</pre></div>'
    )


def pictures_html(job: Job | None) -> str:
    """Return HTML with the newest stills and the curves of a job's runs."""
    if job is None:
        return ""
    parts = []
    for path in newest_stills(job.folders):
        picture = shrunk(path, STILL_WIDTH, box=sheet_box([path]))
        if picture is not None:
            caption = f"{path.parent.parent.name}, step {int(path.stem)}: {', '.join(picture.rows)}"
            image = f'<img class="still" src="{picture.uri}" alt="{escape(caption)}">'
            parts.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
    drawn = [plot for folder in job.folders for plot in _plots(folder)]
    return f'<div class="ui-live">{"".join(parts)}<div class="curves">{"".join(drawn)}</div></div>'


def _plots(folder: Path) -> list[str]:
    records, found = read_log(folder / "log.jsonl"), []
    phases = phase_times(records)
    for names, members in groups(records):
        inside = [phase for phase in phases if phase.name in names]
        for curve in curves(members):
            if curve.name in PLOTTED:
                caption = f"{folder.name}: {PLOT_NAMES[curve.name].lower()}, {' and '.join(names)}"
                # Remove the script element with the data of the tooltips, because only the report has
                # tooltips.
                found.append(draw(curve, inside, caption).partition("<script")[0] + "</figure>")
    return found


def _progress(job: Job) -> str:
    """Return HTML with the last finished step according to the logs."""
    for folder in reversed(job.folders):
        records = read_log(folder / "log.jsonl")
        if records and job.state != DONE:
            return f", {escape(folder.name)}, step {records[-1]['step']} ({escape(records[-1]['phase'])})"
    return ""


def _lines(text: str) -> list[str]:
    """Split the text of a terminal into lines. Of an overwritten line, return the last version."""
    return [line.rpartition("\r")[2] for line in re.split(r"\r?\n", text) if line.strip()]
