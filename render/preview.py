"""Pictures of whatever is being made: stills, the orbit, and the film of the optimisation.

Everything here sees the scene as a function from cameras to named layers: shaded, kd, ks, normal, mask …,
each [B,H,W,C] with C = 1 or 3, ready for display (in [0,1], sRGB where it is colour, on white). The first
layer is the main one, of which the films are made.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from render.camera import Cameras, look_at_origin, orbit
from render.export.atomic import atomic_path
from render.export.image import as_rgb, grid, to_bytes, write_gif, write_mp4, write_png
from render.shade.brdf import linear_to_srgb
from render.shade.cube import cube_to_latlong

logger = logging.getLogger(__name__)

Render = Callable[[Cameras], dict[str, Float[Tensor, "B H W C"]]]

ELEVATION_DEGREES, FOVY_DEGREES = 20.0, 45.0
GIF_SIDE = 256
LATLONG = "latlong"


def views_in_batches(cameras: Cameras, batch: int) -> Iterator[Cameras]:
    """The same views, at most `batch` at a time."""
    for start in range(0, len(cameras.position), batch):
        yield cameras.select(slice(start, start + batch))


@torch.no_grad()
def stills(
    render: Render,
    path: Path | str,
    resolution: tuple[int, int],
    panels: Sequence[str] = (),
    environment: Float[Tensor, "6 R R 3"] | None = None,
) -> None:
    """One PNG: a column for each of four azimuths a quarter turn apart, a row for each layer.

    panels: the layers to show below the main one, in this order, instead of all; LATLONG stands for the
    environment (linear radiance, a cube map). One that the scene does not have is left out. The names of the
    rows stand in the PNG's text entry "rows", with commas between.
    """
    layers = render(orbit(4, resolution, ELEVATION_DEGREES, FOVY_DEGREES))
    main, *others = layers
    rows = {}
    for name in (main, *(panels or others)):
        if name in layers:
            rows[name] = torch.cat(list(as_rgb(layers[name]).cpu()), dim=1)
        elif name == LATLONG and environment is not None:
            rows[name] = _latlong_row(environment, resolution)
    write_png(path, grid(list(rows.values()), columns=1), {"rows": ",".join(rows)})


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

    Returns the GIFs and the film. Frames are rendered `batch` at a time and go straight to the disk.
    """
    out_dir = Path(out_dir)
    cameras = orbit(frames, resolution, ELEVATION_DEGREES, FOVY_DEGREES)
    names: list[str] = []
    number = 0
    # Files take longer than rendering: threads write those of one batch while the next one is rendered.
    with ThreadPoolExecutor(thread_name_prefix="orbit") as pool:
        pending: list[Future] = []
        with tqdm(total=frames, desc="orbit", unit="frame", mininterval=1.0, disable=None) as bar:
            for some in views_in_batches(cameras, batch):
                layers = {name: to_bytes(images) for name, images in render(some).items()}
                names = list(layers)
                finished(pending)
                pending = [
                    pool.submit(write_png, out_dir / "validate" / name / f"{number + k:03d}.png", image)
                    for name, images in layers.items()
                    for k, image in enumerate(images)
                ]
                number += len(some.position)
                bar.update(len(some.position))
            finished(pending)
        paths = {
            name: [out_dir / "validate" / name / f"{k:03d}.png" for k in range(frames)] for name in names
        }
        gifs = [out_dir / "validate" / f"{name}.gif" for name in names]
        for gif, frame_paths in zip(gifs, paths.values(), strict=True):
            write_gif(gif, list(pool.map(_small, frame_paths)), fps)
    film = out_dir / "turntable.mp4"
    write_mp4(film, _pixels(paths[names[0]]), fps)
    return [gifs[0], film, *gifs[1:]]


def finished(tasks: list[Future]) -> None:
    """Wait for them; the first error is raised."""
    for task in tasks:
        task.result()


class Film:
    """The optimisation as a film: out_dir/video_log.mp4, a frame every `interval` steps, one degree further
    each.

    Frames wait as JPEGs in out_dir/film/ under their step's number, so a resumed run goes on where its
    checkpoint left off: frames past `resumed_step` are dropped. A frame depends on the step alone, not on
    those before.
    """

    def __init__(
        self, out_dir: Path | str, interval: int, resolution: tuple[int, int], resumed_step: int = 0
    ) -> None:
        assert interval > 0, "the interval between frames is at least one step"
        self.path = Path(out_dir) / "video_log.mp4"
        self.folder = Path(out_dir) / "film"
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


def _small(path: Path) -> Image.Image:
    """A frame for a GIF, no side longer than GIF_SIDE."""
    with Image.open(path) as image:
        frame = image.convert("RGB")
    frame.thumbnail((GIF_SIDE, GIF_SIDE), Image.Resampling.LANCZOS)
    return frame
