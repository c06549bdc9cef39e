"""Pictures of a run: stills and the training video. The turntable is in turntable.py.

`render` is a function from cameras to a dict of layers: shaded, kd, ks, normal, mask … Each layer is
[B,H,W,C] with C = 1 or 3, in [0,1], on white. Colours are sRGB. The first layer is the main layer, which is
shown in the videos. If a picture or video cannot be written, a warning is logged and the run continues.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from configs.run import LATLONG
from configs.schema import Config
from render.async_copy import AsyncCopy
from render.camera import Cameras, look_at_origin, orbit
from render.image_io.atomic import atomic_path
from render.image_io.image import as_rgb, grid, to_uint8, write_mp4, write_png
from render.shade.brdf import linear_to_srgb
from render.shade.cubemap import cube_to_latlong
from training.background_writer import BackgroundWriter, FinishedOnExit
from training.numbered_files import numbered_files, warn_on_error

logger = logging.getLogger(__name__)

Render = Callable[[Cameras], dict[str, Float[Tensor, "B H W C"]]]

ELEVATION_DEGREES, FOVY_DEGREES = 20.0, 45.0


@dataclass(frozen=True)
class Stills:
    """A picture of four views with a row for each layer. rows: names of the layers."""

    picture: Float[Tensor, "H W 3"]
    rows: tuple[str, ...]

    def write(self, path: Path | str) -> None:
        """Write a PNG. Its text entry "rows" contains the names of the rows, separated by commas."""
        write_png(path, self.picture, {"rows": ",".join(self.rows)})


@torch.no_grad()
def take_stills(
    render: Render,
    resolution: tuple[int, int],
    panels: Sequence[str] = (),
    environment: Float[Tensor, "6 R R 3"] | None = None,
) -> Stills:
    """Render a column for each of four azimuths, 90 degrees apart, and a row for each layer.

    The result is on the CPU. panels: the layers in the rows after the main layer, in this order; empty means
    all layers. The name LATLONG selects `environment` (a cube map of linear radiance). Layers that the scene
    does not have are omitted.
    """
    layers = render(orbit(4, resolution, ELEVATION_DEGREES, FOVY_DEGREES))
    main, *others = layers
    rows = {}
    for name in (main, *(panels or others)):
        if name in layers:
            rows[name] = torch.cat(list(as_rgb(layers[name]).cpu()), dim=1)
        elif name == LATLONG and environment is not None:
            rows[name] = _latlong_row(environment, resolution)
    return Stills(grid(list(rows.values()), columns=1), tuple(rows))


class AsyncImageWriter(FinishedOnExit):
    """A context manager that writes stills in a thread, because PNG compression takes as long as many steps.

    written: function that is called with (step, path) in the caller's thread after each still is on disk. If
    a still cannot be written, a warning is logged. If the run is killed while a still is being written, that
    still is lost.
    """

    def __init__(self, written: Callable[[int, Path], None]) -> None:
        self._written = written
        self._writer = BackgroundWriter()
        self._latest: tuple[int, Path] | None = None
        self._warned: set[Path] = set()

    def submit(self, step: int, path: Path, stills: Stills) -> None:
        """Wait until the previous stills are written, then start to write those of `step`."""
        self.finish()
        self._latest = step, path
        self._writer.start(partial(stills.write, path))

    def collect(self) -> bool:
        """If the latest still is written by now, call `written` and return True, otherwise return False."""
        if self._latest is None or self._writer.busy:
            return False
        self.finish()
        return True

    def finish(self) -> None:
        """Wait until the latest still is written, and call `written`."""
        if self._latest is None:
            return
        (step, path), self._latest = self._latest, None
        with warn_on_error(path, self._warned):
            self._writer.finish()
            self._written(step, path)


def _latlong_row(
    environment: Float[Tensor, "6 R R 3"], resolution: tuple[int, int]
) -> Float[Tensor, "H sheet 3"]:
    """Return the environment in sRGB as a lat-long map on a white row of the sheet.

    The map has the height of a view unless it would be wider than the sheet.
    """
    height, width = resolution
    high = min(height, 2 * width)
    # Sample a map at the resolution of the cube first, then downsample it. Sampling the cube directly at the
    # lower resolution could miss a small light source.
    fine = cube_to_latlong(environment, environment.shape[1]).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(fine, (high, 2 * high), mode="bilinear", antialias=True)
    row = torch.ones(height, 4 * width, 3)
    row[:high, : 2 * high] = linear_to_srgb(small[0].permute(1, 2, 0)).cpu()
    return row


class TrainingVideo(FinishedOnExit):
    """The training video, out_dir/video_log.mp4. It has a frame every `interval` steps.

    The camera rotates by one degree per frame. Frames are stored as JPEGs in out_dir/video_frames/, and the
    file name is the step. The view of a frame depends only on its step, so a resumed run continues the
    rotation. Frames after `resumed_step` are deleted. If a frame cannot be written, a warning is logged.

    A frame is compressed and written in a thread. As a context manager, the object finishes it on exit.
    """

    def __init__(
        self, out_dir: Path | str, interval: int, resolution: tuple[int, int], resumed_step: int = 0
    ) -> None:
        assert interval > 0, "the interval between frames is at least one step"
        self.path = Path(out_dir) / "video_log.mp4"
        self.folder = Path(out_dir) / "video_frames"
        self.interval, self.resolution = interval, resolution
        self._warned: set[Path] = set()
        self._writer = BackgroundWriter()
        for step, frame in numbered_files(self.folder, ".jpg"):
            if step > resumed_step:
                with warn_on_error(frame):
                    frame.unlink()

    def due(self, step: int) -> bool:
        """Return whether a frame is rendered after `step`."""
        return step % self.interval == 0

    @torch.no_grad()
    def record(self, render: Render, step: int) -> None:
        """Render the frame of `step`, if one is due, and start to write it."""
        if not self.due(step):
            return
        azimuth = torch.tensor([math.radians(step // self.interval % 360)])
        camera = look_at_origin(
            azimuth,
            torch.full_like(azimuth, math.radians(ELEVATION_DEGREES)),
            torch.full_like(azimuth, math.radians(FOVY_DEGREES)),
            self.resolution,
        )
        main = next(iter(render(camera).values()))
        self._writer.start(partial(self._write, step, AsyncCopy(to_uint8(as_rgb(main)[0]))))

    def _write(self, step: int, frame: AsyncCopy) -> None:
        with warn_on_error(self.folder, self._warned):
            with atomic_path(self.folder / f"{step:06d}.jpg") as temporary:
                Image.fromarray(frame.read().numpy()).save(temporary, format="JPEG", quality=92)

    def finish(self) -> None:
        """Wait until the latest frame is written."""
        self._writer.finish()

    def assemble(self, fps: int = 25) -> Path | None:
        """Write the video from the stored frames.

        Return the path of the video, or None if frames or the video writer are missing.
        """
        frames = _pixels([frame for _, frame in numbered_files(self.folder, ".jpg")], self.resolution)
        first = next(frames, None)
        if first is None:
            return None
        return self.path if write_mp4(self.path, chain([first], frames), fps) else None


def _pixels(paths: list[Path], resolution: tuple[int, int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield the pictures, scaled to `resolution` (height, width). Damaged pictures are skipped."""
    height, width = resolution
    scaled = 0
    for path in paths:
        try:
            with Image.open(path) as image:
                picture = image.convert("RGB")
        except Exception as error:  # Pillow raises errors of many types for damaged files.
            logger.warning("warning: the frame %s is skipped, it cannot be read: %s", path, error)
            continue
        if picture.size != (width, height):
            picture, scaled = picture.resize((width, height), Image.Resampling.LANCZOS), scaled + 1
        yield np.asarray(picture)
    if scaled:
        folder = paths[0].parent
        logger.warning("warning: %d frames in %s have another preview_res and are scaled", scaled, folder)


def training_video(config: Config, step: int) -> TrainingVideo:
    """Return the run's video, and delete its frames after `step`."""
    return TrainingVideo(
        config.run.output_folder, max(config.run.video_interval, 1), config.run.preview_res, step
    )


def save_previews(
    config: Config, scene: nn.Module, video: TrainingVideo, image_writer: AsyncImageWriter, step: int
) -> None:
    """Write the video frame and the stills that are due after `step`."""
    run = config.run
    if run.video_interval:
        video.record(scene.layers, step)
    if run.save_interval and (step % run.save_interval == 0 or step == config.schedule.iter):
        stills = take_stills(scene.layers, run.preview_res, run.panels, scene.light.cube.detach())
        image_writer.submit(step, run.output_folder / "stills" / f"{step:06d}.png", stills)
