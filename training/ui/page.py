"""The page with the form, the current run and earlier results. It needs the package gradio."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.cli import load_configs
from configs.run import OUTPUT_ROOT
from dataset.procedural import CATEGORIES
from dataset.procedural.materials import MATERIALS
from render.mesh_io.load import READERS
from training.console import describe_error
from training.report.page import escape, link
from training.report.run_page import REPORT_FILE
from training.ui.commands import FROM_TEXT, TASKS, Request, command_line, mesh_among, result_folder
from training.ui.job import CONSOLE_FILE, BusyError, JobRunner
from training.ui.live import fingerprint, job_html, pictures_html
from training.ui.results import find_results
from training.ui.settings import Setting, main_settings

if TYPE_CHECKING:
    import gradio

TITLE = "Text to a textured 3D mesh"
RESULTS_ADDRESS = "/results"
REFRESH_SECONDS = 1.0
UNCHANGED = "default"
# Suffixes of the files that can be uploaded together with a mesh.
MATERIAL_FILES = (".mtl", ".bin", ".png", ".jpg", ".jpeg")


class Page:
    """Event handlers of the page.

    The only state of the handlers is the runner's job, so all open pages show the same run.
    """

    def __init__(self, runner: JobRunner, uploads: Path, run_options: Sequence[str]) -> None:
        """Create the handlers.

        uploads: folder of the uploaded files; files outside are rejected. run_options: options of all runs.
        """
        self.runner, self.uploads, self.run_options = runner, uploads.resolve(), tuple(run_options)

    def start(
        self, task: str, text: str, quick: bool, name: str, files: Sequence[str] | None, *values: object
    ) -> str:
        """Start a run. Return the HTML of an error message, or "" if there is no error."""
        try:
            options = [setting.option for setting in main_settings()]
            chosen = dict(zip(options, map(_value, values), strict=True))
            uploaded = [self._uploaded(file) for file in files or ()]
            self._start(Request(task, text or "", bool(quick), name or "", uploaded, chosen))
        except (ValueError, OSError) as error:
            return f'<p class="ui-error">{escape(describe_error(error))}</p>'
        return ""

    def _start(self, request: Request) -> None:
        job = self.runner.job
        if job is not None and job.active:
            raise BusyError(f"a run is in progress: {job.title}; stop it first")
        folder = result_folder(request)
        mesh = None if request.task == FROM_TEXT else mesh_among(request.meshes)
        copied = None if mesh is None else folder / "input" / mesh.name
        argv = command_line(request, folder, copied, self.run_options)
        if copied is not None:
            copied.parent.mkdir(parents=True, exist_ok=True)
            for file in request.meshes:
                shutil.copyfile(file, copied.parent / file.name)
        folders = [config.run.output_folder for config in load_configs(argv)]
        self.runner.start(argv, request.text.strip(), folders, folder / CONSOLE_FILE)

    def _uploaded(self, file: str) -> Path:
        """Return the path of an uploaded file.

        Raises:
            ValueError: if the path is outside of the upload folder.
        """
        path = Path(file).resolve()
        if not path.is_relative_to(self.uploads) or not path.is_file():
            raise ValueError("the file is not an upload of this page; upload it again")
        return path

    def resume(self) -> str:
        """Run the command of the last job again to resume it. Return the HTML of an error message, or ""."""
        job = self.runner.job
        try:
            if job is None:
                raise ValueError("there is no run to continue")
            self.runner.start(job.argv, job.title, job.folders, job.console)
        except (ValueError, OSError) as error:
            return f'<p class="ui-error">{escape(describe_error(error))}</p>'
        return ""

    def model(self) -> str:
        """Return the report of the job's last finished run in a frame, or "" while the job is running."""
        job = self.runner.job
        if job is None or job.active:
            return ""
        root = OUTPUT_ROOT.resolve()
        for folder in reversed(job.folders):
            absolute = folder.resolve()
            if (absolute / "dmtet_mesh/mesh.glb").is_file() and absolute.is_relative_to(root):
                return report_frame(str(absolute.relative_to(root)))
        return ""


def report_frame(folder: str) -> str:
    """Return HTML that shows the report of a result. The report contains the 3D model."""
    address = f"{RESULTS_ADDRESS}/{link(folder)}/{REPORT_FILE}"
    return f'<iframe class="ui-report" src="{address}" title="Report of {escape(folder)}"></iframe>'


def prompt_of(category: str | None, material: str | None) -> str:
    """Return the prompt for a category and a material of the embedded prior, for example "A golden mug"."""
    words = f"{material or ''} {category or ''}".strip()
    return f"{'An' if words[:1] in 'aeiou' else 'A'} {words}" if words else ""


def _value(value: object) -> str | None:
    """Return the value of an input field, or None if the field is empty or contains the default."""
    text = str(value or "").strip()
    return None if text in ("", UNCHANGED) else text


def build_page(page: Page) -> gradio.Blocks:
    """Build the gradio application of a page."""
    import gradio as gr

    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column(scale=2):
                form, start, stop, again = _form(gr)
                error = gr.HTML()
            with gr.Column(scale=3):
                status = gr.HTML(job_html(None))
        model, pictures = gr.HTML(), gr.HTML()
        gr.Markdown("## Results")
        with gr.Row():
            results = gr.Dropdown([], label="Results in the folder out, the newest first", scale=4)
            reload = gr.Button("Update the list", scale=1)
        earlier = gr.HTML()
        seen, timer = gr.State(None), gr.Timer(REFRESH_SECONDS)

        def refresh(before: str | None) -> list[Any]:
            """Return the outputs that depend on the job, or skip all of them if nothing has changed."""
            job = page.runner.job
            now = fingerprint(job)
            if now == before:
                return [gr.skip()] * 7
            active = job is not None and job.active
            return [
                now,
                job_html(job),
                pictures_html(job),
                page.model(),
                gr.update(interactive=not active),
                gr.update(interactive=active, value="Stop now" if active and job.stops else "Stop"),
                gr.update(interactive=job is not None and not active),
            ]

        def list_results() -> Any:
            found = find_results(OUTPUT_ROOT)
            return gr.update(choices=[(result.label, result.folder) for result in found])

        def show(folder: str | None) -> str:
            known = {result.folder for result in find_results(OUTPUT_ROOT)}
            return report_frame(folder) if folder in known else ""

        shown = [seen, status, pictures, model, start, stop, again]
        private = {"api_visibility": "private", "show_progress": "hidden"}
        timer.tick(refresh, seen, shown, **private)
        blocks.load(refresh, seen, shown, **private)
        blocks.load(list_results, None, results, **private)
        start.click(page.start, form, error, **private)
        again.click(page.resume, None, error, **private)
        stop.click(page.runner.stop, None, None, **private)
        reload.click(list_results, None, results, **private)
        results.change(show, results, earlier, **private)
    return blocks


def _form(gr: Any) -> tuple[list[Any], Any, Any, Any]:
    """Build the form. Return the inputs of `Page.start` and the three buttons."""
    task = gr.Radio(TASKS, value=FROM_TEXT, label="Task")
    text = gr.Textbox(label="Text", placeholder="A golden mug", elem_id="prompt")
    with gr.Row():
        category = gr.Dropdown(list(CATEGORIES), label="Category of the embedded prior", value=None)
        material = gr.Dropdown(["", *MATERIALS], label="Colour or material", value="")
    files = gr.File(
        label="Mesh, with its materials and textures (+y up, front to +z)",
        file_count="multiple",
        file_types=[*READERS, *MATERIAL_FILES],
        visible=False,
        elem_id="mesh",
    )
    files.async_move_resource_to_block_cache = _only_uploads(files.async_move_resource_to_block_cache)
    quick = gr.Checkbox(True, label="Quick: fewer steps and smaller pictures")
    with gr.Accordion("Settings", open=False):
        name = gr.Textbox(label="Folder in out", info="empty: made from the text")
        inputs = [_input(gr, setting) for setting in main_settings()]
    with gr.Row():
        start = gr.Button("Start", variant="primary", elem_id="start")
        stop = gr.Button("Stop", interactive=False, elem_id="stop")
        again = gr.Button("Continue", interactive=False, elem_id="continue")
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    for choice in (category, material):
        choice.change(prompt_of, [category, material], text, **quiet)
    task.change(lambda chosen: gr.update(visible=chosen != FROM_TEXT), task, files, **quiet)
    return [task, text, quick, name, files, *inputs], start, stop, again


def _input(gr: Any, setting: Setting) -> Any:
    """Build the input field of a setting. An empty field selects the default."""
    common = {"label": setting.option, "info": setting.help}
    if setting.choices:
        return gr.Dropdown([UNCHANGED, *setting.choices], value=UNCHANGED, **common)
    # Use a text field, because an empty number field of gradio shows 0.
    return gr.Textbox(placeholder=UNCHANGED, **common)


def _only_uploads(move: Any) -> Any:
    """Wrap gradio's function that copies a file, so that it rejects URLs, which gradio would download."""

    async def checked(name: str, *arguments: object) -> str | None:
        if "://" in str(name):
            raise ValueError("an address is not a file; upload the file")
        return await move(name, *arguments)

    return checked
