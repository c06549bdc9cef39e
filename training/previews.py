"""Pictures of whatever is being made: stills, the orbit, and the film of the optimisation.

Everything here sees the scene as a function from cameras to named layers: shaded, kd, ks, normal, mask …,
each [B,H,W,C] with C = 1 or 3, ready for display (in [0,1], sRGB where it is colour, on white). The first
layer is the main one, of which the films are made.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from configs.run import LATLONG
from configs.schema import Config
from render.camera import Cameras, look_at_origin, orbit
from render.image_io.atomic import atomic_path
from render.image_io.image import as_rgb, grid, to_bytes, to_pillow, write_gif, write_mp4, write_png
from render.shade.brdf import linear_to_srgb
from render.shade.cubemap import cube_to_latlong

logger = logging.getLogger(__name__)

Render = Callable[[Cameras], dict[str, Float[Tensor, "B H W C"]]]

ELEVATION_DEGREES, FOVY_DEGREES = 20.0, 45.0
GIF_SIDE = 256


def views_in_batches(cameras: Cameras, batch: int) -> Iterator[Cameras]:
    """The same views, at most `batch` at a time."""
    for start in range(0, len(cameras.position), batch):
        yield cameras.select(slice(start, start + batch))


@dataclass(frozen=True)
class Stills:
    """A picture of four views; rows names what each row of it shows."""

    picture: Float[Tensor, "H W 3"]
    rows: tuple[str, ...]

    def write(self, path: Path | str) -> None:
        """As PNG; the names of the rows stand in its text entry "rows", with commas between."""
        write_png(path, self.picture, {"rows": ",".join(self.rows)})


@torch.no_grad()
def take_stills(
    render: Render,
    resolution: tuple[int, int],
    panels: Sequence[str] = (),
    environment: Float[Tensor, "6 R R 3"] | None = None,
) -> Stills:
    """A column for each of four azimuths a quarter turn apart, a row for each layer; on the CPU.

    panels: the layers to show below the main one, in this order, instead of all; LATLONG stands for the
    environment (linear radiance, a cube map). One that the scene does not have is left out.
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


class AsyncImageWriter:
    """A thread that writes stills while the run goes on: packing a PNG takes the time of many steps.

    A context manager; `written` hears of each still once it is on the disk, from the caller's thread. What
    goes wrong with a file is raised there too, but not in place of an error that the block ends with. A run
    that is killed while a still is being written lacks it.
    """

    def __init__(self, written: Callable[[int, Path], None]) -> None:
        self._written = written
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="image-writer")
        self._latest: tuple[int, Path, Future] | None = None

    def submit(self, step: int, path: Path, stills: Stills) -> None:
        """Has the stills of `step` written, after those before."""
        self.finish()
        self._latest = step, path, self._pool.submit(stills.write, path)

    def collect(self) -> bool:
        """Tells of the latest still if it has been written since; whether it has."""
        if self._latest is None or not self._latest[2].done():
            return False
        self.finish()
        return True

    def finish(self) -> None:
        """Waits for what is not written yet."""
        if self._latest is None:
            return
        (step, path, task), self._latest = self._latest, None
        task.result()
        self._written(step, path)

    def __enter__(self) -> "AsyncImageWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        rasterize_gbuffer: TracebackType | None,
    ) -> None:
        try:
            self.finish()
        except OSError as fault:
            if error is None:
                raise
            logger.warning("the last still is not written: %s", fault)
        finally:
            self._pool.shutdown()


def _latlong_row(
    environment: Float[Tensor, "6 R R 3"], resolution: tuple[int, int]
) -> Float[Tensor, "H sheet 3"]:
    """The environment in sRGB as a lat-long map, as high as a view where that fits, on white."""
    height, width = resolution
    high = min(height, 2 * width)
    # Resampled from a map as fine as the cube: fewer pixels straight from the cube would miss a small sun.
    fine = cube_to_latlong(environment, environment.shape[1]).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(fine, (high, 2 * high), mode="bilinear", antialias=True)
    row = torch.ones(height, 4 * width, 3)
    row[:high, : 2 * high] = linear_to_srgb(small[0].permute(1, 2, 0)).cpu()
    return row


@torch.no_grad()
def write_orbit(
    render: Render,
    out_dir: Path | str,
    resolution: tuple[int, int],
    frames: int = 100,
    batch: int = 4,
    fps: int = 25,
) -> list[Path]:
    """Once around: validate/<layer>/000.png …, validate/<layer>.gif, and turntable.mp4 of the main layer.

    Returns the GIFs and the film. Frames are rendered `batch` at a time and go straight to the disk; small
    ones are kept for the GIFs, 0.2 MB each.
    """
    validate = Path(out_dir) / "validate"
    cameras = orbit(frames, resolution, ELEVATION_DEGREES, FOVY_DEGREES)
    # Files take longer than rendering: threads write those of one batch while the next one is rendered.
    with ThreadPoolExecutor(thread_name_prefix="orbit") as pool:
        small = _write_frames(render, cameras, validate, batch, pool)
        gifs = [validate / f"{name}.gif" for name in small]
        pending = [
            pool.submit(write_gif, gif, pictures, fps)
            for gif, pictures in zip(gifs, small.values(), strict=True)
        ]
        main = validate / next(iter(small))
        film = Path(out_dir) / "turntable.mp4"
        write_mp4(film, _pixels([main / f"{number:03d}.png" for number in range(frames)]), fps)
        finished(pending)
    return [gifs[0], film, *gifs[1:]]


def _write_frames(
    render: Render, cameras: Cameras, folder: Path, batch: int, pool: ThreadPoolExecutor
) -> dict[str, list[Image.Image]]:
    """folder/<layer>/000.png …; returns each layer's frames for its GIF."""
    tasks: dict[str, list[Future[Image.Image]]] = {}
    pending: list[Future[Image.Image]] = []
    number, frames = 0, len(cameras.position)
    with tqdm(total=frames, desc="orbit", unit="frame", mininterval=1.0, disable=None) as bar:
        for some in views_in_batches(cameras, batch):
            layers = {name: to_bytes(images) for name, images in render(some).items()}
            finished(pending)
            pending = []
            for name, images in layers.items():
                paths = [folder / name / f"{number + k:03d}.png" for k in range(len(images))]
                new = [pool.submit(_write_frame, *frame) for frame in zip(paths, images, strict=True)]
                tasks.setdefault(name, []).extend(new)
                pending += new
            number += len(some.position)
            bar.update(len(some.position))
    return {name: [task.result() for task in written] for name, written in tasks.items()}


def _write_frame(path: Path, pixels: UInt8[np.ndarray, "H W C"]) -> Image.Image:
    """The frame as PNG; returns it for the GIF, no side longer than GIF_SIDE."""
    write_png(path, pixels)
    small = to_pillow(pixels).convert("RGB")
    small.thumbnail((GIF_SIDE, GIF_SIDE), Image.Resampling.LANCZOS)
    return small


def finished(tasks: list[Future]) -> None:
    """Wait for them; the first error is raised."""
    for task in tasks:
        task.result()


class TrainingVideo:
    """The optimisation as a film: out_dir/video_log.mp4, a frame every `interval` steps, one degree further
    each.

    Frames wait as JPEGs in out_dir/video_frames/ under their step's number, so a resumed run goes on where
    its checkpoint left off: frames past `resumed_step` are dropped. A frame depends on the step alone, not on
    those before.
    """

    def __init__(
        self, out_dir: Path | str, interval: int, resolution: tuple[int, int], resumed_step: int = 0
    ) -> None:
        assert interval > 0, "the interval between frames is at least one step"
        self.path = Path(out_dir) / "video_log.mp4"
        self.folder = Path(out_dir) / "video_frames"
        self.interval, self.resolution = interval, resolution
        for step, frame in self._frames():
            if step > resumed_step:
                frame.unlink()

    def due(self, step: int) -> bool:
        """Whether `step` has a frame."""
        return step % self.interval == 0

    @torch.no_grad()
    def record(self, render: Render, step: int) -> None:
        """The frame of `step`, where one is due; `render` is asked for one view."""
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
        with atomic_path(self.folder / f"{step:06d}.jpg") as temporary:
            Image.fromarray(to_bytes(as_rgb(main)[0])).save(temporary, format="JPEG", quality=92)

    def assemble(self, fps: int = 25) -> Path | None:
        """Joins the frames; returns the film's path, None where there are no frames or no film writer."""
        paths = [frame for _, frame in self._frames()]
        if not paths:
            return None
        return self.path if write_mp4(self.path, _pixels(paths), fps) else None

    def _frames(self) -> list[tuple[int, Path]]:
        return sorted((int(path.stem), path) for path in self.folder.glob("[0-9]*.jpg"))


def _pixels(paths: list[Path]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    for path in paths:
        with Image.open(path) as image:
            yield np.asarray(image.convert("RGB"))


def training_video(config: Config, step: int) -> TrainingVideo:
    """The run's video, with the frames up to `step` that exist already."""
    return TrainingVideo(
        config.run.output_folder, max(config.run.video_interval, 1), config.run.preview_res, step
    )


def save_previews(
    config: Config, scene: nn.Module, video: TrainingVideo, image_writer: AsyncImageWriter, step: int
) -> None:
    """The video frame and the stills that are due after `step`."""
    run = config.run
    if run.video_interval:
        video.record(scene.layers, step)
    if run.save_interval and (step % run.save_interval == 0 or step == config.schedule.iter):
        stills = take_stills(scene.layers, run.preview_res, run.panels, scene.light.cube.detach())
        image_writer.submit(step, run.output_folder / "stills" / f"{step:06d}.png", stills)
