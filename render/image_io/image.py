"""Pictures and films on disk: PNG, MP4, GIF, contact sheets.

An image here is [H,W,C] in [0,1], C = 1 (grey) or 3; values outside are clipped. Files appear whole or not at
all.
"""

import io
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    """Vectors with components in [−1,1] as colours in [0,1]: n · 0.5 + 0.5."""
    return normal * 0.5 + 0.5


def to_bytes(image: Float[Tensor, "*batch H W C"]) -> UInt8[np.ndarray, "*batch H W C"]:
    """[0,1] to the nearest of 0 … 255."""
    return (image.detach().clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()


def to_pillow(image: Float[Tensor, "H W C"] | UInt8[np.ndarray, "H W C"]) -> Image.Image:
    """The image for Pillow: grey for one channel, RGB for three."""
    pixels = to_bytes(image) if isinstance(image, Tensor) else image
    assert pixels.shape[-1] in (1, 3), f"an image has 1 or 3 channels, not {pixels.shape[-1]}"
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def png_bytes(
    image: Float[Tensor, "H W C"] | UInt8[np.ndarray, "H W C"], notes: Mapping[str, str] | None = None
) -> bytes:
    """The image as a PNG file in memory, 8 bits a channel; notes become its text entries."""
    entries = PngInfo()
    for name, note in (notes or {}).items():
        entries.add_text(name, note)
    buffer = io.BytesIO()
    to_pillow(image).save(buffer, format="PNG", pnginfo=entries)
    return buffer.getvalue()


def encode_pngs(images: Sequence[Float[Tensor, "_ _ _"]]) -> list[bytes]:
    """Each image, of any size, as a PNG file in memory; packed side by side, as a fine texture takes a
    second."""
    with ThreadPoolExecutor(thread_name_prefix="png") as pool:
        return list(pool.map(png_bytes, images))


def write_png(
    path: Path | str,
    image: Float[Tensor, "H W C"] | UInt8[np.ndarray, "H W C"],
    notes: Mapping[str, str] | None = None,
) -> None:
    """The image as an 8-bit PNG, atomically; notes become its text entries."""
    write_bytes(path, png_bytes(image, notes))


def read_image(path: Path | str) -> Float[Tensor, "H W 3"]:
    """A picture file as RGB in [0,1]; raises FileNotFoundError where there is none."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).float() / 255


def as_rgb(image: Float[Tensor, "*batch H W C"]) -> Float[Tensor, "*batch H W 3"]:
    """Grey repeated to three channels; colour as it is."""
    return image if image.shape[-1] == 3 else image.expand(*image.shape[:-1], 3)


def grid(
    images: Sequence[Float[Tensor, "H W C"]], columns: int, gap: int = 0, background: float = 1.0
) -> Float[Tensor, "H2 W2 3"]:
    """Images of one size in rows of `columns`, `gap` pixels apart; empty cells take the background."""
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
    """Frames of one size as an H.264 film that every browser plays (yuv420p); returns their number.

    Odd sizes grow by one repeated row or column, since yuv420p wants even ones. Without imageio-ffmpeg there
    is no film, with a warning, and 0 is returned: a run of hours does not end for want of a film.
    """
    try:
        import imageio_ffmpeg
    except ImportError:
        logger.warning("%s is not written: imageio-ffmpeg is missing (pip install imageio-ffmpeg)", path)
        return 0

    count, writer = 0, None
    with atomic_path(path) as temporary:
        try:
            for frame in frames:
                height, width = frame.shape[:2]
                even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                if writer is None:
                    writer = imageio_ffmpeg.write_frames(
                        str(temporary),
                        (even.shape[1], even.shape[0]),
                        fps=fps,
                        codec="libx264",
                        pix_fmt_out="yuv420p",
                        macro_block_size=1,
                        quality=None,
                        output_params=["-crf", "18", "-movflags", "+faststart"],
                    )
                    writer.send(None)
                writer.send(np.ascontiguousarray(even))
                count += 1
        finally:
            if writer is not None:
                writer.close()
        if count == 0:
            raise ValueError(f"{path}: no frames to make a film of")
    return count


def write_gif(path: Path | str, frames: Sequence[Image.Image], fps: int = 25) -> None:
    """RGB frames of one size as a looping GIF under one palette, chosen from frames spread over the whole
    film.

    One palette for all frames and no dithering keep colours from flickering and let Pillow store only what
    changes: on renders 2/3 of the bytes, with a mean error of 1.5 in 255.
    """
    assert frames, "a GIF needs at least one frame"
    colours = _shared_palette(frames)
    indexed = [frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames]
    with atomic_path(path) as temporary:
        indexed[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=indexed[1:],
            # GIF counts in hundredths of a second.
            duration=round(100 / fps) * 10,
            loop=0,
            optimize=True,
        )


def _shared_palette(frames: Sequence[Image.Image], samples: int = 25, side: int = 128) -> Image.Image:
    """254 colours that cover those in use, however rare, and plain black and white."""
    count = min(samples, len(frames))
    chosen = [frames[len(frames) * k // count] for k in range(count)]
    small = [np.asarray(frame.resize((side, side), Image.Resampling.NEAREST)) for frame in chosen]
    pixels = np.stack(small).reshape(-1, 3)
    # One pixel for each colour of 6 bits a channel: counted by pixels, white would take most of the palette.
    _, first = np.unique((pixels >> 2) @ np.array([4096, 64, 1]), return_index=True)
    covering = pixels[first].reshape(-1).tolist()
    if len(first) > 254:
        few = Image.fromarray(pixels[first][None]).quantize(colors=254, method=Image.Quantize.MAXCOVERAGE)
        covering = few.getpalette()[: 254 * 3]
    palette = Image.new("P", (1, 1))
    palette.putpalette([0, 0, 0, 255, 255, 255, *covering])
    return palette
