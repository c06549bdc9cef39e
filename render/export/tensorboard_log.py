"""The numbers and stills of a run for TensorBoard, an optional package (pip install tensorboard)."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = "tensorboard"


def check_installed() -> None:
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

        self._writer = SummaryWriter(str(Path(out_dir) / FOLDER), purge_step=resumed_step + 1)

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
