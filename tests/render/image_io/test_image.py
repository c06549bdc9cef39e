"""Test PNG, GIF and MP4 files by reading them with Pillow and imageio."""

import gc
import io
import zlib

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from render.image_io import image
from render.image_io.atomic import atomic_path, write_text
from render.image_io.image import (
    encode_normal,
    grid,
    png_bytes,
    to_bytes,
    write_mp4,
    write_png,
)


def gradient(height: int = 12, width: int = 10) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([y, x, 1 - y], -1)


def moving_squares(count: int, height: int, width: int) -> list[np.ndarray]:
    frames = []
    for k in range(count):
        frame = np.full((height, width, 3), 255, np.uint8)
        frame[4:20, 2 * k : 2 * k + 16] = (200, 40, 10 * k)
        frames.append(frame)
    return frames


def test_png_is_exact_to_half_a_step(tmp_path):
    write_png(tmp_path / "new" / "a.png", gradient())
    read = torch.from_numpy(np.array(Image.open(tmp_path / "new" / "a.png"))) / 255
    assert (read - gradient()).abs().max() <= 0.5001 / 255
    write_png(tmp_path / "grey.png", gradient()[..., :1] * 3 - 1)
    assert Image.open(tmp_path / "grey.png").mode == "L"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def default_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_png_strategy_follows_the_picture():
    """Runs suit smooth noise, and the default strategy suits a repeated tile. Both are stored exactly."""
    noise = np.random.default_rng(0).normal(size=(256, 256, 3)).cumsum(1) * 2 + 128
    smooth = noise.clip(0, 255).astype(np.uint8)
    tiled = np.tile(np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8), (8, 8, 1))
    for pixels, strategy in ((smooth, zlib.Z_RLE), (tiled, zlib.Z_FILTERED), (smooth[:3], zlib.Z_RLE)):
        assert image._png_strategy(pixels) == strategy
        content = png_bytes(pixels)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
        assert len(content) < 1.1 * len(default_png(pixels))


def test_bytes_are_the_nearest_and_clipped():
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 254.4 / 255, 1.0, 2.0])
    assert to_bytes(values.reshape(1, 7, 1)).reshape(-1).tolist() == [0, 0, 0, 1, 254, 255, 255]


def test_normals_as_colours():
    axes = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
    assert encode_normal(axes).tolist() == [[1, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 1]]


def test_grid_puts_images_in_reading_order():
    images = [torch.full((4, 6, 1), k / 10) for k in range(5)]
    sheet = grid(images, columns=3, gap=2)
    assert sheet.shape == (4 + 2 + 4, 6 * 3 + 2 * 2, 3)
    assert sheet[0, 0, 0] == 0 and sheet[0, 8, 0] == 0.1 and sheet[9, 8, 2] == 0.4
    assert sheet[4, 0, 0] == 1 and sheet[9, -1, 0] == 1


def test_mp4_has_all_frames_even_sides_and_the_colours(tmp_path):
    frames = moving_squares(13, 31, 45)
    assert write_mp4(tmp_path / "film.mp4", iter(frames), fps=10) == 13
    with imageio.get_reader(tmp_path / "film.mp4") as reader:
        back = list(reader.iter_data())
        meta = reader.get_meta_data()
    assert len(back) == 13 and back[0].shape == (32, 46, 3)
    assert meta["pix_fmt"].startswith("yuv420p") and meta["codec"] == "h264" and meta["fps"] == 10
    for sent, seen in zip(frames, back, strict=True):
        assert np.abs(seen[:31, :45].astype(float) - sent).mean() < 6
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_no_frames_is_an_error_and_keeps_the_old_video(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"old")
    with pytest.raises(ValueError, match="no frames"):
        write_mp4(tmp_path / "film.mp4", [])
    assert (tmp_path / "film.mp4").read_bytes() == b"old"


def test_an_error_between_frames_leaves_no_file_of_the_video(tmp_path):
    """ffmpeg must end before the temporary file is removed. Otherwise, it creates the file again."""
    frames = moving_squares(3, 24, 40)

    def interrupted():
        yield from frames
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way") as caught:
        write_mp4(tmp_path / "film.mp4", interrupted())
    del caught
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError, match="half-way"), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError("half-way")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
