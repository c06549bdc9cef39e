"""Compare HDR files with handwritten bytes and with files written by OpenEXR, and test their precision."""

import numpy as np
import pytest
import torch

from render.image_io.hdr import read_latlong, write_hdr


def wide_range(height=9, width=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.empty(height, width, 1).uniform_(-30, 30, generator=generator)
    return torch.rand(height, width, 3, generator=generator) * 2**exponent


def write_exr(path, **channels):
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


@pytest.mark.parametrize("width", [5, 8, 40, 300])
def test_round_trip_keeps_the_shared_exponents_precision(tmp_path, width):
    image = wide_range(width=width)
    write_hdr(tmp_path / "a.hdr", image)
    # The stored exponent e is such that the largest channel, after rounding, lies in [2^(e−1), 2^e). The step
    # is 2^(e−8), and the error is at most half a step.
    _, exponent = torch.frexp(image.amax(-1, keepdim=True) * (256 / 255.5))
    bound = 2.0 ** (exponent - 9)
    assert ((read_latlong(tmp_path / "a.hdr") - image).abs() <= bound * 1.0001).all()


def test_representable_values_survive_exactly(tmp_path):
    image = torch.tensor([0.0, 0.5, 1.0, 255.0, 2.0**-20, 1.5 * 2**40]).repeat_interleave(3).reshape(1, 6, 3)
    write_hdr(tmp_path / "a.hdr", image)
    assert torch.equal(read_latlong(tmp_path / "a.hdr"), image)


def test_extremes_do_not_wrap_around(tmp_path):
    image = torch.tensor([[[0.99999, 0, 0], [1e-44, 0, 0], [-3, 0, 0], [1.6e38, 1, 1]]])
    write_hdr(tmp_path / "a.hdr", image)
    back = read_latlong(tmp_path / "a.hdr")
    assert torch.allclose(back[0, :, 0], torch.tensor([1.0, 0, 0, 1.6e38]), rtol=1 / 512)


def test_runs_compress_and_decode(tmp_path):
    image = torch.ones(4, 1000, 3)
    image[:, 500:] = 0.25
    image[2, 3::7] = 8.0
    write_hdr(tmp_path / "a.hdr", image)
    assert (tmp_path / "a.hdr").stat().st_size < 4 * 1000 * 4 / 2
    assert torch.equal(read_latlong(tmp_path / "a.hdr"), image)


def test_the_bytes_of_runs_and_literals(tmp_path):
    """A run of 200 is split after 127, literals are split after 128, and three equal bytes are literals."""
    ramp = torch.arange(130.0) % 2
    line = torch.cat([torch.ones(200), ramp, torch.full((3,), 0.5), torch.full((4,), 0.25)])
    image = torch.stack([torch.ones_like(line), line, line], -1).expand(2, -1, 3)
    write_hdr(tmp_path / "a.hdr", image)
    literal = [128 if value else 0 for value in ramp.tolist()] + [64] * 3
    # The 200 ones are followed by the ramp, whose first value is 0.
    changing = [255, 128, 128 + 73, 128, 128, *literal[:128], 5, *literal[128:], 132, 32]
    width = len(line)
    runs = [byte for value in (128, 129) for byte in [255, value] * 2 + [128 + width - 254, value]]
    line_bytes = [2, 2, width >> 8, width & 255, *runs[:6], *changing, *changing, *runs[6:]]
    assert (tmp_path / "a.hdr").read_bytes().endswith(bytes(line_bytes * 2))
    assert torch.equal(read_latlong(tmp_path / "a.hdr"), image)


def test_flat_file_written_by_hand(tmp_path):
    pixels = bytes([128, 64, 0, 129, 255, 0, 1, 128, 0, 0, 0, 0])
    header = b"#?RADIANCE\n# by hand\nEXPOSURE=1\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 3\n"
    (tmp_path / "a.hdr").write_bytes(header + pixels)
    expected = torch.tensor([[[1.0, 0.5, 0.0], [255 / 256, 0, 1 / 256], [0, 0, 0]]])
    assert torch.equal(read_latlong(tmp_path / "a.hdr"), expected)


def test_run_length_encoded_file_written_by_hand(tmp_path):
    """The file has two scanlines of 8 pixels with literals and runs, as in "Real Pixels" (Ward, 1991)."""
    ramp = bytes([8, 128, 136, 144, 152, 160, 168, 176, 184])
    lines = [
        b"\x02\x02\x00\x08" + ramp + b"\x88\x40" + b"\x83\x00\x05\x20\x20\x20\x20\x20" + b"\x84\x81\x84\x80",
        b"\x02\x02\x00\x08" + b"\x88\x80" + b"\x88\x00" + b"\x88\x00" + b"\x88\x82",
    ]
    (tmp_path / "a.hdr").write_bytes(b"#?RGBE\nFORMAT=32-bit_rle_rgbe\n\n-Y 2 +X 8\n" + b"".join(lines))
    image = read_latlong(tmp_path / "a.hdr")
    scale = torch.tensor([2.0] * 4 + [1.0] * 4) / 256
    assert torch.equal(image[0, :, 0], torch.arange(128, 192, 8) * scale)
    assert torch.equal(image[0, :, 1], 64 * scale)
    assert torch.equal(image[0, :, 2], torch.tensor([0.0] * 3 + [32.0] * 5) * scale)
    assert torch.equal(image[1], torch.tensor([2.0, 0, 0]).expand(8, 3))


def test_exr(tmp_path):
    image = np.random.default_rng(0).normal(1, 1, (6, 12, 3)).astype(np.float32)
    write_exr(tmp_path / "a.exr", R=image[..., 0].copy(), G=image[..., 1].copy(), B=image[..., 2].copy())
    assert np.array_equal(read_latlong(tmp_path / "a.exr").numpy(), np.maximum(image, 0))


def bad_files(folder):
    write_hdr(folder / "whole.hdr", torch.rand(6, 20, 3))
    data = (folder / "whole.hdr").read_bytes()
    marker = data.index(b"\x02\x02\x00\x14")
    start = b"\x02\x02\x00\x08"
    past_the_line = (
        b"-Y 2 +X 8\n" + start + b"\x88\x80" * 3 + b"\x89\x80" + start + b"\x88\x80" * 3 + b"\x87\x80"
    )
    nan = np.full((4, 8), np.nan, np.float32)
    fine = np.ones((4, 8), np.float32)
    write_exr(folder / "nan.exr", R=nan, G=fine, B=fine)
    write_exr(folder / "infinite.exr", R=fine, G=fine * np.inf, B=fine)
    write_exr(folder / "grey.exr", Y=fine)
    contents = {
        "empty.hdr": b"",
        "empty.exr": b"",
        "text.hdr": b"not a picture\n",
        "text.exr": b"not a picture\n",
        "picture.png": data,
        "cut.hdr": data[:-7],
        "cut_flat.hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 3 +X 4\n" + bytes(20),
        "other_width.hdr": data[:marker] + b"\x02\x02\x00\x15" + data[marker + 4 :],
        "no_pixels.hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 0 +X 0\n",
        "run_past_the_line.hdr": data[: data.index(b"-Y")] + past_the_line,
        "xyz.hdr": data.replace(b"rgbe\n", b"xyze\n"),
        "one_axis.hdr": data.replace(b"+X", b"+Y"),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [*contents, "nan.exr", "infinite.exr", "grey.exr"]


def test_bad_files_give_a_one_line_error_with_their_name(tmp_path):
    names = bad_files(tmp_path)
    assert len(names) == 15
    for name in names:
        with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
            read_latlong(tmp_path / name)
        assert "\n" not in str(caught.value), name


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.hdr"):
        read_latlong(tmp_path / "nowhere.hdr")
    with pytest.raises(FileNotFoundError, match="folder"):
        (tmp_path / "folder.hdr").mkdir()
        read_latlong(tmp_path / "folder.hdr")


def test_a_write_that_fails_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "probe.hdr"
    write_hdr(path, torch.ones(4, 8, 3))
    before = path.read_bytes()

    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_hdr(path, torch.zeros(4, 8, 3))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
