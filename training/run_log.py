"""The log of a run: log.jsonl with one JSON line per step, progress on standard error, TensorBoard."""

import importlib.util
import io
import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from tqdm import tqdm

from configs.schema import Config
from render.image_io.atomic import naming_errors, write_text
from sd.schedule import Phase
from training.console import LossyStream
from training.report.curves import parse_line
from training.time_estimate import CommandProgress, in_words

logger = logging.getLogger(__name__)

# Format of the progress bar: position and speed of this run, and the remaining time of the whole command.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"


def require_tensorboard() -> None:
    """Raise ValueError if the package tensorboard is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "log = 'tensorboard': the package tensorboard is not installed; pip install tensorboard, or "
            "--log jsonl"
        )


class TensorBoardLog:
    """Writer of event files in out_dir. TensorBoard uses the name of the folder as the name of the run.

    Tags are "fit/NAME" for the start-shape regression and "distillation/NAME" for score distillation. In a
    resumed run, TensorBoard hides the values after `resumed_step` that an earlier process wrote.
    """

    def __init__(self, out_dir: Path | str, resumed_step: int = 0) -> None:
        # This import is not at the top of the file, because it is slow and the package is optional.
        from torch.utils.tensorboard import SummaryWriter

        self._folder = Path(out_dir)
        self._writer = SummaryWriter(str(out_dir), purge_step=resumed_step + 1)

    def record(self, step: int, phase: Phase, values: Mapping[str, float]) -> None:
        """Write the values of a step."""
        group = "fit" if phase.fit else "distillation"
        with naming_errors(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def still(self, step: int, path: Path) -> None:
        """Write a picture file under the tag "stills"."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image("stills", pixels, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        with naming_errors(self._folder):
            self._writer.close()


class RunLog:
    """A context manager that appends lines to out_dir/log.jsonl and shows the progress.

    On a terminal, a bar shows phase, loss, steps per second and the remaining time. It is updated at most
    once per second. If the output is a file or a pipe, a line is written after every tenth of the steps. A
    resumed run deletes the lines after `resumed_step`, the last step of its checkpoint. "seconds" in a line
    is the total time of the loop, including pictures, checkpoints and the time before the run was resumed.

    progress: the progress of the whole command. If it is None, the remaining time is not shown. mirror:
    another log to which the same values and the stills are written.
    """

    def __init__(
        self,
        out_dir: Path | str,
        last_step: int,
        resumed_step: int = 0,
        stream: io.TextIOBase | None = None,
        mirror: TensorBoardLog | None = None,
        *,
        progress: CommandProgress | None = None,
    ) -> None:
        self._mirror, self._progress = mirror, progress
        self.path = Path(out_dir) / "log.jsonl"
        self.last_step = last_step
        self._stream = LossyStream(sys.stderr if stream is None else stream)
        self._first_step, self._start = resumed_step, time.monotonic()
        self._tenth = 10 * resumed_step // max(last_step, 1)
        self._seconds_before = _drop_lines_past(self.path, resumed_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._bar = tqdm(
            total=last_step,
            initial=resumed_step,
            unit="it",
            file=self._stream,
            disable=not self._stream.isatty(),
            mininterval=1.0,
            dynamic_ncols=True,
            bar_format=BAR,
        )

    def record(self, step: int, phase: Phase, values: Mapping[str, float]) -> None:
        """Log a finished step (the first step is 1) with its phase and values, and show the loss."""
        seconds = self._seconds_before + time.monotonic() - self._start
        self._write({"step": step, "phase": phase.name, "seconds": round(seconds, 3), **values})
        if self._mirror:
            self._mirror.record(step, phase, values)
        if self._progress:
            self._progress.step(step)
        loss = f"loss {values['loss']:.4g}" if "loss" in values else "loss -"
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{loss}{self._time_left()}", refresh=False)
            self._bar.set_description_str(f"{self._label()}{phase.name}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif 10 * step // max(self.last_step, 1) > self._tenth:
            self._tenth = 10 * step // self.last_step
            rate = (step - self._first_step) / max(time.monotonic() - self._start, 1e-9)
            self._stream.write(
                f"{self._label()}{phase.name}, step {step} of {self.last_step}, {loss}, {rate:.2f} it/s"
                f"{self._time_left()}\n"
            )
            self._stream.flush()

    def still(self, step: int, path: Path) -> None:
        """Write the picture of a step to the mirror. log.jsonl contains no pictures."""
        if self._mirror:
            self._mirror.still(step, path)

    def close_bar(self) -> None:
        """End the progress bar, because other lines follow."""
        self._bar.close()

    def close(self) -> None:
        if self._mirror:
            self._mirror.close()
        self._bar.close()
        with naming_errors(self.path):
            self._file.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, record: Mapping[str, object]) -> None:
        with naming_errors(self.path):
            self._file.write(json.dumps({key: _jsonable(value) for key, value in record.items()}) + "\n")
            self._file.flush()

    def _label(self) -> str:
        return f"{self._progress.label}: " if self._progress else ""

    def _time_left(self) -> str:
        if not self._progress:
            return ""
        return f", {in_words(self._progress.remaining())} left{self._progress.scope}"


def _jsonable(value: object) -> object:
    """Replace NaN and infinity by their names, because JSON does not support them."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _drop_lines_past(path: Path, step: int) -> float:
    """Delete the lines of a log after `step`, and the incomplete last line of a killed run.

    Return the value "seconds" of the last remaining line, or 0 if no line remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return 0.0
    kept, seconds = [], 0.0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        record = parse_line(line)
        if record is not None and record["step"] <= step:
            kept.append(line + "\n")
            seconds = record.get("seconds", seconds)
    write_text(path, "".join(kept))
    return seconds


def open_run_log(config: Config, last_step: int, step: int, progress: CommandProgress | None) -> RunLog:
    """Open the log of a run with `step` finished steps."""
    out = config.run.output_folder
    mirror = TensorBoardLog(out, step) if config.run.log == "tensorboard" else None
    return RunLog(out, last_step, step, mirror=mirror, progress=progress)


def log_start(config: Config, progress: CommandProgress, report: Path) -> None:
    """Log what the run produces, its prior, the expected time of the command, and the path of the report."""
    guidance = config.guidance
    logger.info(
        "%s: %r with the prior %s; about %s%s",
        progress.label,
        guidance.text,
        " + ".join(filter(None, (guidance.sd_model, guidance.second_sd_model))),
        in_words(progress.remaining()),
        progress.scope,
    )
    logger.info("report: %s", report)


def log_end(config: Config, label: str, cost: str, report: Path) -> None:
    """Log the end of a run, its cost (time, memory), and the paths of its report and its mesh."""
    logger.info("done: %s, in %s", label, cost)
    logger.info("report: %s", report)
    logger.info("mesh: %s", config.run.mesh_path.with_suffix(".glb"))
