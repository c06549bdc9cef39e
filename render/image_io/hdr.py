"""Reading and writing high-dynamic-range pictures: Radiance .hdr (RGBE) and, read only, OpenEXR .exr.

Radiance in memory is linear RGB, float32, row 0 at the top. RGBE shares one exponent among three 8-bit
mantissas, so the largest channel of a pixel is kept to 1 part in 256 and the others to 1/256 of the largest.
Source of the format: G. Ward, "Real Pixels", Graphics Gems II, 1991, and the Radiance manual.
"""

import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from render.image_io.atomic import write_bytes

SIGNATURES = (b"#?RADIANCE", b"#?RGBE")
# The new run-length encoding stores the width in 15 bits and is not used for narrower lines than this.
RLE_WIDTHS = range(8, 0x8000)
LONGEST_LITERAL = 128
LONGEST_RUN = 127
SHORTEST_RUN = 4


def read_latlong(path: str | Path) -> Float[Tensor, "H W 3"]:
    """Linear radiance of a .hdr or .exr file, at least 0.

    Negative values, which resampling filters leave behind, become 0. Raises FileNotFoundError where there is
    no such file, and ValueError naming it where it is not a readable picture or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"environment map {path} does not exist: give the path of a .hdr or .exr file"
        )
    readers = {".hdr": _read_rgbe, ".exr": _read_exr}
    if path.suffix.lower() not in readers:
        raise ValueError(f"environment map {path} has the wrong format: expected a .hdr or .exr file")
    image = readers[path.suffix.lower()](path)
    if image.size == 0:
        raise ValueError(f"environment map {path} holds no pixels: give another file")
    if not np.isfinite(image).all():
        raise ValueError(f"environment map {path} holds NaN or infinite values: save it again without them")
    return torch.from_numpy(np.maximum(image, 0).astype(np.float32))


def write_hdr(path: str | Path, image: Float[Tensor, "H W 3"]) -> None:
    """Write linear radiance as run-length encoded RGBE, atomically; values below 0 are written as 0."""
    rgbe = _encode_rgbe(image.detach().cpu().float().numpy())
    height, width = rgbe.shape[:2]
    header = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n".encode()
    if width in RLE_WIDTHS:
        marker = bytes([2, 2, width >> 8, width & 255])
        body = b"".join(
            marker + b"".join(_compress(line[:, channel]) for channel in range(4)) for line in rgbe
        )
    else:
        body = rgbe.tobytes()
    write_bytes(path, header + body)


def _encode_rgbe(image: Float[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 4"]:
    image = np.maximum(image, 0)
    largest = image.max(-1)
    _, exponent = np.frexp(largest)
    # Rounding the mantissa may reach 256: such a pixel takes the next exponent.
    exponent = exponent + (np.rint(np.ldexp(largest, 8 - exponent)) > 255)
    visible = exponent >= -127
    mantissas = np.rint(np.ldexp(image, (8 - exponent)[..., None]))
    rgbe = np.concatenate([mantissas, (exponent + 128)[..., None]], -1)
    return np.where((visible & (largest > 0))[..., None], rgbe, 0).clip(0, 255).astype(np.uint8)


def _decode_rgbe(rgbe: UInt8[np.ndarray, "H W 4"]) -> Float[np.ndarray, "H W 3"]:
    exponent = rgbe[..., 3:].astype(np.int32) - (128 + 8)
    return np.where(rgbe[..., 3:] > 0, np.ldexp(rgbe[..., :3].astype(np.float32), exponent), 0)


def _compress(line: UInt8[np.ndarray, " W"]) -> bytes:
    """One channel of one line: (128 + n, value) is a run of n, (n, values) are n literal bytes."""
    starts = np.flatnonzero(np.diff(line, prepend=~line[:1]))
    lengths = np.diff(starts, append=len(line))
    data, packed, literal_from = line.tobytes(), bytearray(), 0
    worth_it = lengths >= SHORTEST_RUN
    ends = [(int(s), int(n)) for s, n in zip(starts[worth_it], lengths[worth_it], strict=True)]
    for start, length in [*ends, (len(line), 0)]:
        for at in range(literal_from, start, LONGEST_LITERAL):
            literal = data[at : min(at + LONGEST_LITERAL, start)]
            packed += bytes([len(literal)]) + literal
        for done in range(0, length, LONGEST_RUN):
            packed += bytes([128 + min(LONGEST_RUN, length - done), data[start]])
        literal_from = start + length
    return bytes(packed)


def _read_rgbe(path: Path) -> Float[np.ndarray, "H W 3"]:
    data = path.read_bytes()
    header = re.match(rb"(.*?)\n\n-Y +(\d+) +\+X +(\d+)\n", data, re.DOTALL)
    if not data.startswith(SIGNATURES) or header is None:
        raise ValueError(
            f"environment map {path} is not a Radiance .hdr file with top-down lines (-Y H +X W)"
        )
    if b"32-bit_rle_xyze" in header[1]:
        raise ValueError(f"environment map {path} holds CIE XYZ: save it as RGB (32-bit_rle_rgbe)")
    height, width = int(header[2]), int(header[3])
    body = memoryview(data)[header.end() :]
    compressed = width in RLE_WIDTHS and bytes(body[:2]) == b"\x02\x02" and bytes(body[2:3]) < b"\x80"
    try:
        rgbe = _read_lines(body, height, width) if compressed else _read_flat(body, height, width)
    except (IndexError, ValueError) as error:
        raise ValueError(f"environment map {path} is cut short or damaged: get it again") from error
    return _decode_rgbe(rgbe)


def _read_flat(body: memoryview, height: int, width: int) -> UInt8[np.ndarray, "H W 4"]:
    return np.frombuffer(body, np.uint8, height * width * 4).reshape(height, width, 4)


def _read_lines(body: memoryview, height: int, width: int) -> UInt8[np.ndarray, "H W 4"]:
    """Lines of the new run-length encoding: 2, 2, width in two bytes, then the four channels in turn."""
    data, lines, at = body.tobytes(), bytearray(), 0
    marker = bytes([2, 2, width >> 8, width & 255])
    for line in range(height):
        if data[at : at + 4] != marker:
            raise ValueError("a line does not start with its width")
        at += 4
        end = (line + 1) * width * 4
        while len(lines) < end:
            count = data[at]
            if count > 128:
                lines += data[at + 1 : at + 2] * (count - 128)
                at += 2
            else:
                lines += data[at + 1 : at + 1 + count]
                at += 1 + count
        if len(lines) != end:
            raise ValueError("a run crosses the end of a line")
    return np.frombuffer(lines, np.uint8).reshape(height, 4, width).transpose(0, 2, 1)


def _read_exr(path: Path) -> Float[np.ndarray, "H W 3"]:
    import OpenEXR

    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name: channel.pixels for name, channel in file.channels().items()}
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"environment map {path} is not a readable OpenEXR file: get it again") from error
    if not {"R", "G", "B"} <= channels.keys():
        raise ValueError(
            f"environment map {path} has the channels {', '.join(sorted(channels))}: R, G and B are needed"
        )
    return np.stack([np.asarray(channels[name], np.float32) for name in "RGB"], -1)
