"""Test GIF files by reading them with Pillow and with the decoder of ffmpeg."""

import imageio_ffmpeg
import numpy as np
from PIL import Image
from test_image import moving_squares

from render.image_io.gif import TRANSPARENT, _indices, _shared_palette, write_gif


def test_gif_loops_and_keeps_colours(tmp_path):
    frames = moving_squares(9, 30, 40)
    write_gif(tmp_path / "a.gif", [Image.fromarray(frame) for frame in frames], fps=25)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 9 and gif.info["loop"] == 0 and gif.info["duration"] == 40
        for k, frame in enumerate(frames):
            gif.seek(k)
            assert np.abs(np.asarray(gif.convert("RGB")).astype(float) - frame).max() < 12


def test_gif_shows_each_frame_in_the_colours_of_the_palette(tmp_path):
    """Noise uses all colours, parts of the frames repeat, and two frames are equal."""
    generator = np.random.default_rng(0)
    arrays = list(generator.integers(0, 255, (4, 33, 47, 3), dtype=np.uint8))
    arrays[2][10:, :20] = arrays[1][10:, :20]
    arrays.insert(3, arrays[2])
    frames = [Image.fromarray(array) for array in arrays]
    write_gif(tmp_path / "a.gif", frames, fps=10)
    palette = _shared_palette(frames)
    indices = [_indices(frame, palette) for frame in frames]
    assert max(index.max() for index in indices) < TRANSPARENT
    colours = np.array(palette.getpalette(), dtype=np.uint8).reshape(-1, 3)
    with Image.open(tmp_path / "a.gif") as gif:
        # The two equal frames are stored once.
        assert gif.n_frames == 4
        for k, (index, duration) in enumerate(
            zip(np.delete(indices, 3, 0), (100, 100, 200, 100), strict=True)
        ):
            gif.seek(k)
            assert np.array_equal(np.asarray(gif.convert("RGB")), colours[index])
            assert gif.info["duration"] == duration
    _, *others = imageio_ffmpeg.read_frames(tmp_path / "a.gif")
    assert others == [colours[index].tobytes() for index in indices]


def test_black_and_white_are_exact(tmp_path):
    """The palette contains colours near white, which are nearer to the rounded white."""
    array = np.full((20, 30, 3), 255, np.uint8)
    array[:, :10] = 0
    array[10:, 10:] = np.arange(200).reshape(10, 20, 1) % 4 + [250, 251, 250]
    write_gif(tmp_path / "a.gif", [Image.fromarray(array)])
    with Image.open(tmp_path / "a.gif") as gif:
        shown = np.asarray(gif.convert("RGB"))
    assert np.array_equal(shown[:10], array[:10]) and np.array_equal(shown[:, :10], array[:, :10])


def test_single_frame_gif(tmp_path):
    frame = Image.fromarray(moving_squares(1, 8, 20)[0])
    write_gif(tmp_path / "a.gif", [frame])
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 1 and gif.size == (20, 8)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - np.asarray(frame)).max() < 12
