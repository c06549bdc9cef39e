"""Animated GIFs with one palette for all frames."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from render.image_io.atomic import atomic_path

# The last of the 256 colours is transparent. It marks the pixels that a frame does not change.
TRANSPARENT = 255
# The first two colours of the palette.
BLACK, WHITE = 0, 1
# Repeat the animation forever (the Netscape application extension).
LOOP = b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
# Flags of a frame: it stays when the next frame is drawn, and one colour is transparent.
KEEP, HAS_TRANSPARENT = 4, 1
# The bits of a pixel at the start of the LZW compression.
CODE_SIZE = 8
# The longest duration of a frame, in units of 10 ms.
LONGEST = 65535


def write_gif(path: Path | str, frames: Sequence[Image.Image], fps: int = 25) -> None:
    """Write RGB frames of one size as a looping GIF with one palette for all frames.

    A single palette without dithering avoids flicker. Each frame stores only the pixels that change, and
    consecutive equal frames are stored once with a longer duration. The mean error of a colour is 1.5 of 255.
    Only the LZW compression is done by Pillow, because its GIF writer gives each frame its own palette and
    compares frames in RGBA.
    """
    assert frames, "a GIF needs at least one frame"
    palette = _shared_palette(frames)
    colours = bytes(palette.getpalette()).ljust(768, b"\0")
    # Durations of GIF frames are multiples of 10 ms.
    duration = round(100 / fps)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        # 0xf7: the file has a palette of 256 colours with 8 bits per channel.
        file.write(struct.pack("<6sHHBBB", b"GIF89a", *frames[0].size, 0xF7, 0, 0) + colours + LOOP)
        shown = None
        for pixels, count in _runs_of_equal(_indices(frame, palette) for frame in frames):
            file.write(_frame(pixels, shown, min(count * duration, LONGEST)))
            shown = pixels
        file.write(b";")


def _runs_of_equal(frames: Iterable[UInt8[np.ndarray, "H W"]]) -> Iterator[tuple[np.ndarray, int]]:
    """Yield each frame that differs from the frame before, and how often it is repeated."""
    last, count = None, 0
    for pixels in frames:
        if last is not None and not np.array_equal(pixels, last):
            yield last, count
            count = 0
        last, count = pixels, count + 1
    yield last, count


def _indices(frame: Image.Image, palette: Image.Image) -> UInt8[np.ndarray, "H W"]:
    """Return the index of the nearest colour of the palette for each pixel. Black and white are exact,
    although Pillow compares rounded colours.
    """
    pixels = np.array(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    red, green, blue = np.asarray(frame).transpose(2, 0, 1)
    for index, value in ((BLACK, 0), (WHITE, 255)):
        pixels[(red == value) & (green == value) & (blue == value)] = index
    return pixels


def _frame(pixels: UInt8[np.ndarray, "H W"], shown: UInt8[np.ndarray, "H W"] | None, duration: int) -> bytes:
    """Return a frame: the box around the pixels that differ from the frame that is shown before.

    shown: the frame before, which differs, or None. duration: in units of 10 ms.
    """
    top, left, flags = 0, 0, KEEP
    if shown is not None:
        flags |= HAS_TRANSPARENT
        changed = pixels != shown
        down, across = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
        top, left = down[0], across[0]
        changes = np.where(changed, pixels, TRANSPARENT).astype(np.uint8)
        pixels = changes[top : down[-1] + 1, left : across[-1] + 1]
    height, width = pixels.shape
    # A graphic control extension with four bytes, and an image descriptor.
    control = struct.pack("<2sBBHBB", b"!\xf9", 4, flags, duration, TRANSPARENT, 0)
    box = struct.pack("<BHHHHBB", ord(","), left, top, width, height, 0, CODE_SIZE)
    # Pillow's encoder "gif" returns the LZW data in blocks. The last argument turns off interlacing.
    return control + box + Image.fromarray(pixels).tobytes("gif", "L", CODE_SIZE, 0) + b"\0"


def _shared_palette(frames: Sequence[Image.Image], samples: int = 25, side: int = 128) -> Image.Image:
    """Return a palette of black, white and up to 253 colours that represent the colours of sampled frames."""
    count, most = min(samples, len(frames)), TRANSPARENT - 2
    chosen = [frames[len(frames) * k // count] for k in range(count)]
    small = [np.asarray(frame.resize((side, side), Image.Resampling.NEAREST)) for frame in chosen]
    pixels = np.stack(small).reshape(-1, 3)
    # Only one pixel of each colour (6 bits per channel) is kept. Otherwise, white pixels would determine most
    # of the palette.
    _, first = np.unique((pixels >> 2) @ np.array([4096, 64, 1]), return_index=True)
    covering = pixels[first].reshape(-1).tolist()
    if len(first) > most:
        few = Image.fromarray(pixels[first][None]).quantize(colors=most, method=Image.Quantize.MAXCOVERAGE)
        covering = few.getpalette()[: most * 3]
    # The palette is filled with black up to the transparent colour, because Pillow may fill it with others.
    colours = [0, 0, 0, 255, 255, 255, *covering]
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours + [0] * (3 * TRANSPARENT - len(colours)))
    return palette
