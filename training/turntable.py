"""The turntable at the end of a run: frames of all layers around the object, GIFs and a video."""

import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from render.camera import Cameras, orbit
from render.image_io.atomic import atomic_path
from render.image_io.gif import write_gif
from render.image_io.image import to_bytes, to_pillow, write_mp4
from training.previews import ELEVATION_DEGREES, FOVY_DEGREES, Render

GIF_SIDE = 256
# On a GPU, a batch has at most this number of pixels (10 views of 512 × 512). Larger batches hardly reduce
# the time per view.
BATCH_PIXELS = 10 * 512 * 512


def views_per_batch(device: torch.device, resolution: tuple[int, int]) -> int:
    """Return the number of views that are rendered at once.

    On a CPU, this is one view: the memory of larger batches exceeds the caches, and the C library would
    return it to the system after each operation, which takes a quarter of the time.
    """
    height, width = resolution
    return max(1, BATCH_PIXELS // (height * width)) if device.type == "cuda" else 1


def views_in_batches(cameras: Cameras, batch: int) -> Iterator[Cameras]:
    """Split the views into groups of at most `batch`."""
    for start in range(0, len(cameras.position), batch):
        yield cameras.select(slice(start, start + batch))


@torch.no_grad()
def write_orbit(
    render: Render,
    out_dir: Path | str,
    resolution: tuple[int, int],
    *,
    frames: int = 100,
    batch: int = 4,
    fps: int = 25,
) -> list[Path]:
    """Write validate/<layer>/000.png …, validate/<layer>.gif, and turntable.mp4 of the main layer.

    Return the paths of the GIFs and the video. Frames are rendered in batches of `batch` and written
    immediately. The small copies for the GIFs are kept in memory and take 0.2 MB each.
    """
    validate, video = Path(out_dir) / "validate", Path(out_dir) / "turntable.mp4"
    cameras = orbit(frames, resolution, ELEVATION_DEGREES, FOVY_DEGREES)
    film_frames: SimpleQueue = SimpleQueue()
    # Writing takes longer than rendering, so threads write the frames while the next batch is rendered.
    with ThreadPoolExecutor(thread_name_prefix="orbit") as pool:
        try:
            film = pool.submit(write_mp4, video, _received(film_frames), fps)
            small = _write_frames(render, cameras, validate, batch, pool, film_frames)
        except BaseException as error:
            # The video is not written, and its thread ends.
            film_frames.put(error)
            raise
        film_frames.put(None)
        gifs = {name: validate / f"{name}.gif" for name in small}
        finished([*(pool.submit(write_gif, gifs[name], small[name], fps) for name in small), film])
    main, *others = gifs.values()
    return [main, video, *others]


def _received(frames: SimpleQueue) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield the items of a queue until None. If an item is an exception, raise it."""
    while (frame := frames.get()) is not None:
        if isinstance(frame, BaseException):
            raise frame
        yield frame


def _write_frames(
    render: Render,
    cameras: Cameras,
    folder: Path,
    batch: int,
    pool: ThreadPoolExecutor,
    film_frames: SimpleQueue,
) -> dict[str, list[Image.Image]]:
    """Write folder/<layer>/000.png …, and put the frames of the main layer into the queue.

    Return a dict from layer to the small frames for its GIF.
    """
    tasks: dict[str, list[Future[list[Image.Image]]]] = {}
    pending: list[Future] = []
    number, frames = 0, len(cameras.position)
    with tqdm(total=frames, desc="orbit", unit="frame", mininterval=1.0, disable=None) as bar:
        for some in views_in_batches(cameras, batch):
            layers = {name: to_bytes(images) for name, images in render(some).items()}
            for image in next(iter(layers.values())):
                film_frames.put(np.broadcast_to(image, (*image.shape[:2], 3)))
            finished(pending)
            pending = []
            for name, images in layers.items():
                paths = [folder / name / f"{number + k:03d}.png" for k in range(len(images))]
                pending += [pool.submit(_write_frame, *frame) for frame in zip(paths, images, strict=True)]
                tasks.setdefault(name, []).append(pool.submit(_small_copies, images))
            number += len(some.position)
            bar.update(len(some.position))
    finished(pending)
    return {name: [copy for task in made for copy in task.result()] for name, made in tasks.items()}


def _write_frame(path: Path, pixels: UInt8[np.ndarray, "H W C"]) -> None:
    """Write the frame as PNG. Its strategy is that of rendered pictures in `image.png_bytes`."""
    with atomic_path(path) as temporary:
        to_pillow(pixels).save(temporary, format="PNG", compress_type=zlib.Z_RLE)


def _small_copies(images: UInt8[np.ndarray, "B H W C"]) -> list[Image.Image]:
    """Return RGB copies for the GIF, at most GIF_SIDE pixels in height and width.

    The bicubic filter of torch is used, because Pillow's filters take ten times as long.
    """
    height, width = images.shape[1:3]
    scale = GIF_SIDE / max(height, width)
    if scale < 1:
        size = max(1, round(scale * height)), max(1, round(scale * width))
        channels_first = torch.from_numpy(images).movedim(-1, 1)
        small = torch.nn.functional.interpolate(channels_first, size, mode="bicubic", antialias=True)
        images = small.movedim(1, -1).contiguous().numpy()
    return [to_pillow(image).convert("RGB") for image in images]


def finished(tasks: list[Future]) -> None:
    """Wait for all tasks. Raise the first error."""
    for task in tasks:
        task.result()
