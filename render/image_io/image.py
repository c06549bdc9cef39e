"""Writing of images and videos as PNG and MP4, and of contact sheets.

An image is [H,W,C] with C = 1 (grey) or 3. Values outside of [0,1] are clipped. Files are written atomically.
"""

import importlib.util
import io
import logging
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from render.image_io.atomic import atomic_path, write_bytes

logger = logging.getLogger(__name__)


def encode_normal(normal: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
    """Map vector components in [−1,1] to colours in [0,1]: n · 0.5 + 0.5."""
    return normal * 0.5 + 0.5


def to_bytes(image: Float[Tensor, "*batch H W C"]) -> UInt8[np.ndarray, "*batch H W C"]:
    """Convert values in [0,1] to the nearest integers in 0 … 255."""
    return to_uint8(image).cpu().numpy()


def to_uint8(image: Float[Tensor, "*batch H W C"]) -> UInt8[Tensor, "*batch H W C"]:
    """Convert values in [0,1] to the nearest integers in 0 … 255 on the device of the image."""
    return image.detach().clamp(0, 1).mul_(255).add_(0.5).to(torch.uint8)


def to_pillow(image: Float[Tensor, "H W C"] | UInt8[np.ndarray, "H W C"]) -> Image.Image:
    """Return the image as a Pillow image. One channel gives a grey image, and three channels give RGB."""
    return Image.fromarray(_pixels(image))


def _pixels(image: Float[Tensor, "H W C"] | UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "..."]:
    """Return bytes [H,W] for one channel, or [H,W,C] for three or four channels (the fourth is alpha)."""
    pixels = to_bytes(image) if isinstance(image, Tensor) else image
    assert pixels.shape[-1] in (1, 3, 4), f"an image has 1, 3 or 4 channels, not {pixels.shape[-1]}"
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def png_bytes(
    image: Float[Tensor, "H W C"] | UInt8[np.ndarray, "H W C"], notes: Mapping[str, str] | None = None
) -> bytes:
    """Return the image as a PNG file in memory, 8 bits per channel. `notes` are stored as text chunks."""
    text = PngInfo()
    for name, note in (notes or {}).items():
        text.add_text(name, note)
    pixels = _pixels(image)
    return _png(pixels, compress_type=_png_strategy(pixels), pnginfo=text)


def _png(pixels: UInt8[np.ndarray, "..."], **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def _png_strategy(pixels: UInt8[np.ndarray, "..."], strips: int = 8, height: int = 8) -> int:
    """Return the strategy of zlib for a picture.

    For rendered pictures and baked textures, Z_RLE takes a quarter of the time of the default strategy, and
    the sizes are similar (0.9 to 1.15). For repeated patterns and text, Z_RLE can be ten times as large.
    Therefore both are tried on evenly spaced strips of `height` rows, and Z_RLE is used if it is at most a
    fifth larger there.
    """
    sample = pixels
    if len(pixels) > strips * height:
        starts = np.linspace(0, len(pixels) - height, strips).astype(int)
        sample = np.concatenate([pixels[start : start + height] for start in starts])
    fast, default = (len(_png(sample, compress_type=kind)) for kind in (zlib.Z_RLE, zlib.Z_DEFAULT_STRATEGY))
    return zlib.Z_RLE if fast <= 1.2 * default else zlib.Z_FILTERED


def encode_pngs(images: Sequence[Float[Tensor, "_ _ _"] | UInt8[np.ndarray, "_ _ _"]]) -> list[bytes]:
    """Return images of any size as PNG files in memory.

    The images are compressed in parallel, because the compression of a large texture takes 0.3 s.
    """
    with ThreadPoolExecutor(thread_name_prefix="png") as pool:
        return list(pool.map(png_bytes, images))


def write_png(
    path: Path | str,
    image: Float[Tensor, "H W C"] | UInt8[np.ndarray, "H W C"],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write the image as an 8-bit PNG. `notes` are stored as text chunks."""
    write_bytes(path, png_bytes(image, notes))


def read_image(path: Path | str) -> Float[Tensor, "H W 3"]:
    """Read an image file as RGB in [0,1]. Raises FileNotFoundError if the file does not exist."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).float() / 255


def as_rgb(image: Float[Tensor, "*batch H W C"]) -> Float[Tensor, "*batch H W 3"]:
    """Repeat a grey channel three times. Colour images are returned unchanged."""
    return image if image.shape[-1] == 3 else image.expand(*image.shape[:-1], 3)


def grid(
    images: Sequence[Float[Tensor, "H W C"]], columns: int, gap: int = 0, background: float = 1.0
) -> Float[Tensor, "H2 W2 3"]:
    """Arrange images of one size in `columns` columns, `gap` pixels apart.

    Empty cells have the background colour.
    """
    assert images and columns > 0, "a grid needs at least one image and one column"
    height, width = images[0].shape[:2]
    rows = math.ceil(len(images) / columns)
    sheet = torch.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, 3),
        background,
        dtype=images[0].dtype,
        device=images[0].device,
    )
    for number, image in enumerate(images):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = as_rgb(image)
    return sheet


def write_mp4(path: Path | str, frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: int = 25) -> int:
    """Write frames of one size as an H.264 video and return the number of frames.

    The pixel format is yuv420p, which all browsers can play. It requires even sizes, so odd sizes are padded
    by repeating the last row or column. If imageio-ffmpeg is missing, the video is skipped with a warning,
    and 0 is returned. Raises ValueError if there are no frames.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        logger.warning("%s is not written: imageio-ffmpeg is missing (pip install imageio-ffmpeg)", path)
        return 0
    import imageio.v2 as imageio

    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: no frames to write")
    count = 0
    with atomic_path(path) as temporary:
        writer = imageio.get_writer(
            temporary,
            format="FFMPEG",
            mode="I",
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            macro_block_size=1,
            quality=None,
            output_params=["-crf", "18", "-movflags", "+faststart"],
        )
        # As a context manager, the writer does not wait for ffmpeg after an error. ffmpeg would then create
        # the temporary file again.
        with closing(writer):
            for frame in chain([first], frames):
                height, width = frame.shape[:2]
                writer.append_data(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
                count += 1
    return count
