"""What a run tells while it runs: log.jsonl, one JSON line a step, and one progress bar."""

import importlib.util
import io
import json
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
from training.console import LossyStream
from training.report.curves import parse_line

TENSORBOARD_FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Raises ValueError where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "log = 'tensorboard': the package tensorboard is not installed; pip install tensorboard, or "
            "--log jsonl"
        )


class TensorBoardLog:
    """Event files in out_dir/tensorboard; a resumed run hides what an earlier sitting wrote past
    `resumed_step`."""

    def __init__(self, out_dir: Path | str, resumed_step: int = 0) -> None:
        # Slow to import, and only there where it was asked for.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(Path(out_dir) / TENSORBOARD_FOLDER), purge_step=resumed_step + 1)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step, each under its name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def still(self, step: int, path: Path) -> None:
        """A picture file, under "stills"."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image("stills", pixels, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class RunLog:
    """Appends to out_dir/log.jsonl and moves one bar; a context manager.

    On a terminal the bar shows phase, loss, iterations a second and time left, at most once a second;
    elsewhere (a file, a pipe) a line appears about every tenth of the way. A resumed run drops the lines past
    `resumed_step`, the last step that its checkpoint holds, and goes on. Each line's "seconds" is the time
    spent in the loop up to it, pictures and checkpoints included, the sittings before a resume counted in.
    mirror gets the same numbers, and the stills.
    """

    def __init__(
        self,
        out_dir: Path | str,
        last_step: int,
        resumed_step: int = 0,
        stream: io.TextIOBase | None = None,
        mirror: TensorBoardLog | None = None,
    ) -> None:
        self._mirror = mirror
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
        )

    def record(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        """One finished step (from 1): its phase and named numbers, of which "loss" is shown."""
        seconds = self._seconds_before + time.monotonic() - self._start
        self._write({"step": step, "phase": phase, "seconds": round(seconds, 3), **values})
        if self._mirror:
            self._mirror.record(step, values)
        loss = f"{values['loss']:.4g}" if "loss" in values else "-"
        self._bar.set_postfix_str(f"loss {loss}", refresh=False)
        self._bar.set_description_str(phase, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and 10 * step // max(self.last_step, 1) > self._tenth:
            self._tenth = 10 * step // self.last_step
            self._say(step, phase, loss)

    def still(self, step: int, path: Path) -> None:
        """A picture of that step; the log itself holds none."""
        if self._mirror:
            self._mirror.still(step, path)

    def close(self) -> None:
        if self._mirror:
            self._mirror.close()
        self._bar.close()
        with naming_errors(self.path):
            self._file.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, record: Mapping[str, object]) -> None:
        with naming_errors(self.path):
            self._file.write(json.dumps({key: _jsonable(value) for key, value in record.items()}) + "\n")
            self._file.flush()

    def _say(self, step: int, phase: str, loss: str) -> None:
        seconds = time.monotonic() - self._start
        rate = (step - self._first_step) / max(seconds, 1e-9)
        left = tqdm.format_interval((self.last_step - step) / max(rate, 1e-9))
        self._stream.write(
            f"{phase}: step {step}/{self.last_step}, loss {loss}, {rate:.2f} it/s, {left} left\n"
        )
        self._stream.flush()


def _jsonable(value: object) -> object:
    """JSON has no NaN or infinity: they become their names."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _drop_lines_past(path: Path, step: int) -> float:
    """Keeps the whole lines up to `step`; a line that a killed run left unfinished goes as well.

    Returns the seconds of the last line that is kept, 0 where there are none.
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


def open_run_log(config: Config, last_step: int, step: int) -> RunLog:
    """The log of a run with `step` finished steps."""
    out = config.run.output_folder
    mirror = TensorBoardLog(out, step) if config.run.log == "tensorboard" else None
    return RunLog(out, last_step, step, mirror=mirror)
