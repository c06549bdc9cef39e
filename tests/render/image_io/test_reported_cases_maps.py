"""Test environment maps from bug reports. Each test is named after the reported case."""

import struct
from functools import partial

import numpy as np
import pytest
import reader_refusal
import torch
from PIL import Image

from render.image_io.hdr import read_latlong, write_hdr
from render.shade.light import read_environment_map

HEADER = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n"


refusal = partial(reader_refusal.refusal, read=read_latlong)


def grey(value: int) -> bytes:
    """Return an RGBE pixel with radiance value / 256."""
    return bytes([value, value, value, 128])


def test_hdr_old_rle(tmp_path):
    # Each line has 264 pixels: the value 200, four repetitions of it, the value 100, and 2 + 256 repetitions
    # of it.
    line = grey(200) + b"\1\1\1\4" + grey(100) + b"\1\1\1\2" + b"\1\1\1\1"
    (tmp_path / "a.hdr").write_bytes(HEADER + b"-Y 2 +X 264\n" + 2 * line)
    image = read_latlong(tmp_path / "a.hdr")
    assert torch.equal(image[:, :5], torch.full((2, 5, 3), 200 / 256))
    assert torch.equal(image[:, 5:], torch.full((2, 259, 3), 100 / 256))


def test_each_line_has_its_own_encoding(tmp_path):
    old = grey(200) + b"\1\1\1\7"
    new = b"\2\2\0\10" + b"\x88\x64" * 3 + b"\x88\x80"
    flat = b"".join(grey(150 + k) for k in range(8))
    for order in ((old, new, flat), (flat, new, old), (new, flat, old)):
        (tmp_path / "a.hdr").write_bytes(HEADER + b"-Y 3 +X 8\n" + b"".join(order))
        image = read_latlong(tmp_path / "a.hdr")[..., 0] * 256
        assert {tuple(row) for row in image.tolist()} == {(200.0,) * 8, (100.0,) * 8, tuple(range(150, 158))}


@pytest.mark.parametrize(
    "body", [b"\1\1\1\10", grey(9) + b"\1\1\1\11", grey(9) * 7, b"\2\2\0\7" + b"\x87\1" * 4]
)
def test_damaged_lines_are_rejected(tmp_path, body):
    (tmp_path / "a.hdr").write_bytes(HEADER + b"-Y 1 +X 8\n" + body)
    assert "damaged" in refusal(tmp_path / "a.hdr")


@pytest.mark.parametrize(
    "resolution", ["-Y +X", "+Y +X", "-Y -X", "+Y -X", "+X -Y", "-X -Y", "+X +Y", "-X +Y"]
)
def test_hdr_orientation(tmp_path, resolution):
    height, width = 2, 3
    upright = np.arange(1, 7).reshape(height, width)
    stored = upright[:: -1 if "+Y" in resolution else 1, :: -1 if "-X" in resolution else 1]
    first, second = resolution.split()
    size = {"X": width, "Y": height}
    stored = stored.T if first[1] == "X" else stored
    line = f"{first} {size[first[1]]} {second} {size[second[1]]}\n".encode()
    pixels = b"".join(grey(128 + value) for value in stored.reshape(-1))
    (tmp_path / "a.hdr").write_bytes(HEADER + line + pixels)
    image = read_latlong(tmp_path / "a.hdr")
    assert (image[..., 0] * 256 - 128).tolist() == upright.tolist()


def test_other_pictures_named_hdr_are_named(tmp_path):
    for kind in ("PNG", "JPEG", "TIFF"):
        Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(tmp_path / "a.hdr", format=kind)
        assert f"it is a {kind} picture" in refusal(tmp_path / "a.hdr")


@pytest.mark.parametrize("size", [b"-Y 99999 +X 99999\n", b"-Y 8000 +X 16000\n", b"-Y 999999999 +X 2\n"])
def test_absurd_sizes_are_rejected_before_allocation(tmp_path, size):
    (tmp_path / "a.hdr").write_bytes(HEADER + size + bytes(100))
    message = refusal(tmp_path / "a.hdr")
    assert "pixels" in message and ("at most" in message or "promises" in message)


def write_exr(path, *parts, **header):
    """Write a multi-part EXR file. Each part is (name, {channel: values}, header)."""
    import OpenEXR

    files = []
    for name, channels, own in parts:
        plain = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, **header, **own}
        channels = {key: np.ascontiguousarray(value, np.float32) for key, value in channels.items()}
        files.append(OpenEXR.Part(plain, channels, name))
    OpenEXR.File(files).write(str(path))


def rgb(height=4, width=8, prefix="", seed=0):
    image = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    return image, {prefix + name: image[..., k] for k, name in enumerate("RGB")}


def test_exr_multipart(tmp_path):
    image, channels = rgb()
    write_exr(tmp_path / "a.exr", ("depth", {"Z": image[..., 0]}, {}), ("beauty", channels, {}))
    assert np.array_equal(read_latlong(tmp_path / "a.exr").numpy(), image)


def test_layer_is_read_without_plain_channels(tmp_path):
    image, channels = rgb(prefix="ViewLayer.Combined.")
    write_exr(tmp_path / "a.exr", ("all", {**channels, "ViewLayer.Depth.Z": image[..., 0]}, {}))
    assert np.array_equal(read_latlong(tmp_path / "a.exr").numpy(), image)
    other, plain = rgb(seed=1)
    write_exr(tmp_path / "a.exr", ("all", {**channels, **plain}, {}))
    assert np.array_equal(read_latlong(tmp_path / "a.exr").numpy(), other)


@pytest.mark.parametrize(("left", "top"), [(0, 4), (3, 0), (-2, -1), (6, 7)])
def test_exr_cropped(tmp_path, caplog, left, top):
    image, channels = rgb(4, 8)
    window = (np.array([left, top], np.int32), np.array([left + 7, top + 3], np.int32))
    display = (np.array([0, 0], np.int32), np.array([15, 7], np.int32))
    write_exr(tmp_path / "a.exr", ("a", channels, {}), dataWindow=window, displayWindow=display)
    expected = np.zeros((8, 16, 3), np.float32)
    for row in range(4):
        for column in range(8):
            if 0 <= top + row < 8 and 0 <= left + column < 16:
                expected[top + row, left + column] = image[row, column]
    assert np.array_equal(read_latlong(tmp_path / "a.exr").numpy(), expected)
    assert "the rest is black" in caplog.text


def test_chromaticities_are_converted_to_rec_709(tmp_path):
    # The file uses ACES AP0, which has a white point near D60. White must stay white, and a Rec. 709 colour
    # must be recovered.
    _, channels = rgb()
    ap0 = (0.7347, 0.2653, 0.0, 1.0, 0.0001, -0.077, 0.32168, 0.33767)
    white = {name: np.full((4, 8), 0.5, np.float32) for name in "RGB"}
    red = {"R": np.full((4, 8), 0.4397, np.float32), "G": np.full((4, 8), 0.0898, np.float32)}
    red["B"] = np.full((4, 8), 0.0175, np.float32)
    chromaticities = {"chromaticities": ap0}
    write_exr(tmp_path / "a.exr", ("a", white, chromaticities))
    assert torch.allclose(read_latlong(tmp_path / "a.exr"), torch.tensor(0.5), atol=2e-4)
    # `red` is the first column of the published matrix from Rec. 709 to AP0 (Bradford), rounded to 4 digits.
    write_exr(tmp_path / "a.exr", ("a", red, chromaticities))
    assert torch.allclose(read_latlong(tmp_path / "a.exr")[0, 0], torch.tensor([1.0, 0, 0]), atol=2e-3)
    rec709 = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329)
    write_exr(tmp_path / "a.exr", ("a", channels, {"chromaticities": rec709}))
    assert np.array_equal(read_latlong(tmp_path / "a.exr")[..., 0].numpy(), channels["R"])


@pytest.mark.parametrize(
    ("height", "width", "says"),
    [(8, 8, "angular map"), (6, 8, "cube cross"), (8, 6, "cube cross"), (2, 12, "cube strip"), (8, 24, "")],
)
def test_env_not_latlong(tmp_path, height, width, says):
    write_hdr(tmp_path / "a.hdr", torch.ones(height, width, 3))
    message = refusal(tmp_path / "a.hdr", read=read_environment_map)
    assert f"{width} x {height} pixels" in message and says in message and "convert it" in message


def test_maps_about_twice_as_wide_as_high_are_read(tmp_path):
    for width in (31, 32, 33):
        write_hdr(tmp_path / "a.hdr", torch.ones(16, width, 3))
        assert read_environment_map(str(tmp_path / "a.hdr")).shape == (16, width, 3)


@pytest.mark.parametrize("corner", [2**20, 2**31 - 1, -5])
def test_absurd_windows_are_rejected(tmp_path, corner):
    _, channels = rgb()
    display = (np.array([0, 0], np.int32), np.array([77, 33], np.int32))
    write_exr(tmp_path / "a.exr", ("a", channels, {}), displayWindow=display)
    content = (tmp_path / "a.exr").read_bytes()
    assert content.count(struct.pack("<ii", 77, 33)) == 1
    changed = content.replace(struct.pack("<ii", 77, 33), struct.pack("<ii", corner, corner))
    (tmp_path / "a.exr").write_bytes(changed)
    refusal(tmp_path / "a.exr")
