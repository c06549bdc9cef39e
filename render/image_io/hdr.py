"""Radiance .hdr (RGBE) pictures, and the reader of environment maps in .hdr and OpenEXR .exr files.

In memory, radiance is linear RGB in float32 with row 0 at the top. RGBE stores three 8-bit mantissas and one
shared exponent, so each channel of a pixel is accurate to 1/256 of the pixel's largest channel. Sources of
the format: G. Ward, "Real Pixels", Graphics Gems II, 1991, and the Radiance manual.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from render.image_io.atomic import write_bytes
from render.image_io.exr import read_exr
from render.image_io.limits import check_size
from render.read_errors import FileError, printable, reading

SIGNATURES = (b"#?RADIANCE", b"#?RGBE")
# Other picture formats that are sometimes saved with the suffix .hdr.
OTHER_PICTURES = {
    b"\x89PNG": "a PNG",
    b"\xff\xd8\xff": "a JPEG",
    b"\x76\x2f\x31\x01": "an OpenEXR",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"RIFF": "a WebP",
}
# A line such as "-Y H +X W". It contains sign, axis and number of the scan lines, then sign, axis and number
# of the pixels in a scan line. -Y means downward.
RESOLUTION = re.compile(rb"([+-][XY]) +(\d{1,9}) +([+-][XY]) +(\d{1,9})\n")
# The widths of lines in the new run-length encoding. This encoding stores the width in 15 bits and is not
# used for lines of fewer than 8 pixels.
RLE_WIDTHS = range(8, 0x8000)
LONGEST_LITERAL = 128
LONGEST_RUN = 127
SHORTEST_RUN = 4


def read_latlong(path: str | Path) -> Float[Tensor, "H W 3"]:
    """Return the linear radiance of a .hdr or .exr file.

    Negative values, which resampling filters can produce, are replaced by 0.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a readable picture or contains NaN or infinity. The message contains
        the file name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            printable(f"environment map {path} does not exist: give the path of a .hdr or .exr file")
        )
    readers: dict[str, Callable[[Path], np.ndarray]] = {".hdr": _read_rgbe, ".exr": read_exr}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ValueError(
            printable(f"environment map {path} has the wrong format: expected a .hdr or .exr file")
        )
    with reading(path, "environment map", suffix[1:]):
        image = readers[suffix](path)
        if image.size == 0:
            raise FileError("it holds no pixels: give another file")
        if not np.isfinite(image).all():
            raise FileError("it holds NaN or infinite values: save it again without them")
    return torch.from_numpy(np.maximum(image, 0).astype(np.float32))


def write_hdr(path: str | Path, image: Float[Tensor, "H W 3"]) -> None:
    """Write linear radiance as run-length encoded RGBE, atomically. Values below 0 are written as 0."""
    rgbe = _encode_rgbe(image.detach().cpu().float().numpy())
    height, width = rgbe.shape[:2]
    header = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n".encode()
    body = _compress(rgbe) if width in RLE_WIDTHS else rgbe.tobytes()
    write_bytes(path, header + body)


def _encode_rgbe(image: Float[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 4"]:
    image = np.maximum(image, 0)
    largest = image.max(-1)
    _, exponent = np.frexp(largest)
    # If the largest mantissa would be rounded up to 256, which does not fit into a byte, the exponent is
    # increased by 1.
    exponent = exponent + (np.rint(np.ldexp(largest, 8 - exponent)) > 255)
    visible = exponent >= -127
    mantissas = np.rint(np.ldexp(image, (8 - exponent)[..., None]))
    rgbe = np.concatenate([mantissas, (exponent + 128)[..., None]], -1)
    return np.where((visible & (largest > 0))[..., None], rgbe, 0).clip(0, 255).astype(np.uint8)


def _decode_rgbe(rgbe: UInt8[np.ndarray, "H W 4"]) -> Float[np.ndarray, "H W 3"]:
    exponent = rgbe[..., 3:].astype(np.int32) - (128 + 8)
    return np.where(rgbe[..., 3:] > 0, np.ldexp(rgbe[..., :3].astype(np.float32), exponent), 0)


def _compress(rgbe: UInt8[np.ndarray, "H W 4"]) -> bytes:
    """Compress lines with the new run-length encoding.

    A line is (2, 2, width / 256, width % 256) and its four channels. (128 + n, value) is a run of n bytes.
    (n, values) are n literal bytes. All lines are compressed at once by array operations.
    """
    width = rgbe.shape[1]
    data = rgbe.transpose(0, 2, 1).reshape(-1)
    at_channel = np.zeros(len(data), bool)
    at_channel[::width] = True
    # Equal neighbours form runs. Short runs are literal bytes.
    starts = np.flatnonzero(at_channel | np.concatenate([[True], data[1:] != data[:-1]]))
    lengths = np.diff(starts, append=len(data))
    run_start = np.zeros(len(data), bool)
    run_start[starts[lengths >= SHORTEST_RUN]] = True
    in_run = np.repeat(lengths >= SHORTEST_RUN, lengths)
    literal_start = ~in_run & (at_channel | np.concatenate([[True], in_run[:-1]]))
    start, length, is_run = _chunks(np.flatnonzero(run_start | literal_start), in_run)
    # `place` is the offset of each chunk in the output. The first chunk of a line follows the line's marker.
    at_line = start % (4 * width) == 0
    sizes = np.where(is_run, 2, 1 + length) + 4 * at_line
    place = np.cumsum(sizes) - sizes + 4 * at_line
    packed = np.empty(int(sizes.sum()), np.uint8)
    packed[place] = np.where(is_run, 128 + length, length)
    packed[place[is_run] + 1] = data[start[is_run]]
    literal = np.flatnonzero(~in_run)
    packed[literal + np.repeat((place + 1 - start)[~is_run], length[~is_run])] = data[literal]
    packed[place[at_line][:, None] + np.arange(-4, 0)] = [2, 2, width >> 8, width & 255]
    return packed.tobytes()


def _chunks(
    starts: Int[np.ndarray, " S"], in_run: Bool[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, " C"], Bool[np.ndarray, " C"]]:
    """Split runs and literals, which begin at `starts`, into chunks of at most LONGEST_RUN or LONGEST_LITERAL
    bytes. Return their starts, their lengths, and whether they are runs.
    """
    lengths, is_run = np.diff(starts, append=len(in_run)), in_run[starts]
    longest = np.where(is_run, LONGEST_RUN, LONGEST_LITERAL)
    counts = -(-lengths // longest)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    before = number * np.repeat(longest, counts)
    length = np.minimum(np.repeat(longest, counts), np.repeat(lengths, counts) - before)
    return np.repeat(starts, counts) + before, length, np.repeat(is_run, counts)


def _read_rgbe(path: Path) -> Float[np.ndarray, "H W 3"]:
    data = path.read_bytes()
    for signature, what in OTHER_PICTURES.items():
        if data.startswith(signature):
            raise FileError(f"it is {what} picture, not Radiance; save it as .hdr, or name it as what it is")
    begin = re.match(rb"(.*?)\n\n", data, re.DOTALL)
    size = RESOLUTION.match(data, begin.end()) if begin else None
    if not data.startswith(SIGNATURES) or size is None or size[1][1:] == size[3][1:]:
        raise FileError("it is not a Radiance .hdr file; save it as Radiance RGBE (.hdr) or OpenEXR (.exr)")
    if b"32-bit_rle_xyze" in begin[1]:
        raise FileError("it holds CIE XYZ: save it as RGB (32-bit_rle_rgbe)")
    lines, width = int(size[2]), int(size[4])
    check_size(width, lines, len(data))
    rgbe = _read_lines(data[size.end() :], lines, width)
    if size[1].endswith(b"X"):
        rgbe = rgbe.transpose(1, 0, 2)
    signs = {size[1][1:]: size[1][:1], size[3][1:]: size[3][:1]}
    # In the result, rows go downward (-Y) and columns go to the right (+X), so rows and columns in another
    # order are reversed.
    rgbe = rgbe[:: 1 if signs[b"Y"] == b"-" else -1, :: 1 if signs[b"X"] == b"+" else -1]
    return _decode_rgbe(rgbe)


def _read_lines(data: bytes, lines: int, width: int) -> UInt8[np.ndarray, "L W 4"]:
    """Read scan lines. A line is stored as plain pixels or in the old or new run-length encoding."""
    out = np.empty((lines, width, 4), dtype=np.uint8)
    at, marker = 0, bytes([2, 2, width >> 8 & 255, width & 255])
    for line in range(lines):
        if width in RLE_WIDTHS and data[at : at + 4] == marker:
            at = _read_new_rle(data, at + 4, out[line])
        elif width in RLE_WIDTHS and data[at : at + 2] == b"\2\2" and data[at + 2 : at + 3] < b"\x80":
            raise FileError(
                f"scan line {line + 1} does not have the width of the header; the file is damaged"
            )
        else:
            at = _read_old_rle(data, at, out[line])
    return out


def _read_new_rle(data: bytes, at: int, out: UInt8[np.ndarray, "W 4"]) -> int:
    """Read a line in the new encoding, in which the four channels are stored one after another.

    (128 + n, value) is a run of n bytes. (n, values) are n literal bytes.

    Returns the offset of the next line.
    """
    line, width = bytearray(), len(out)
    for channel in range(1, 5):
        while len(line) < channel * width:
            count = data[at] if at < len(data) else 0
            if count > 128:
                line += data[at + 1 : at + 2] * (count - 128)
                at += 2
            else:
                line += data[at + 1 : at + 1 + count]
                at += 1 + count
            if count == 0 or at > len(data):
                raise FileError("it is cut short or damaged: get it again")
        if len(line) != channel * width:
            raise FileError("a run crosses the end of a channel; the file is damaged: get it again")
    out[:] = np.frombuffer(line, np.uint8).reshape(4, width).T
    return at


def _read_old_rle(data: bytes, at: int, out: UInt8[np.ndarray, "W 4"]) -> int:
    """Read a line of pixels in the old encoding. A pixel (1, 1, 1, n) repeats the previous pixel n times.

    If several such pixels follow each other, the n of the k-th pixel is multiplied by 256^(k − 1). Returns
    the offset of the next line.
    """
    done, shift, width = 0, 0, len(out)
    while done < width:
        pixels = np.frombuffer(data[at : at + 4 * (width - done)], np.uint8)
        pixels = pixels[: len(pixels) // 4 * 4].reshape(-1, 4)
        repeats = np.flatnonzero((pixels[:, :3] == 1).all(1))
        plain = int(repeats[0]) if len(repeats) else len(pixels)
        if len(pixels) == 0:
            raise FileError("it is cut short or damaged: get it again")
        if plain:
            out[done : done + plain] = pixels[:plain]
            done, at, shift = done + plain, at + 4 * plain, 0
            continue
        count = int(pixels[0, 3]) << shift
        if done == 0 or count > width - done:
            raise FileError("a run crosses the end of a line; the file is damaged: get it again")
        out[done : done + count] = out[done - 1]
        done, at, shift = done + count, at + 4, shift + 8
    return at
