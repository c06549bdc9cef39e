"""Test the GIF of several runs: which frames it contains, their order, and the error for missing frames."""

from pathlib import Path

import pytest
from PIL import Image, ImageSequence

from data.make_run_gif import main


def write_frames(folder: Path, red: int, count: int) -> Path:
    """Write `count` frames. The red channel is `red`, and the green channel is 20 × step."""
    (folder / "video_frames").mkdir(parents=True)
    for step in range(1, count + 1):
        Image.new("RGB", (16, 16), (red, 20 * step, 0)).save(
            folder / "video_frames" / f"{step:06d}.jpg", quality=100
        )
    return folder


def test_frames_of_both_runs_in_order_ending_with_the_last(tmp_path):
    shape, paint = write_frames(tmp_path / "shape", 0, 8), write_frames(tmp_path / "paint", 200, 3)
    out = tmp_path / "run.gif"
    assert (
        main([str(shape), str(paint), "--out", str(out), "--frames", "4", "--side", "8", "--fps", "5"]) == 0
    )
    with Image.open(out) as gif:
        frames = [
            (frame.convert("RGB").getpixel((4, 4)), frame.info["duration"])
            for frame in ImageSequence.Iterator(gif)
        ]
    # Four of the eight frames of the first run, and all three of the second run. Pillow joins the equal
    # frames at the end: 0.2 s and one more second.
    greens = [40, 80, 120, 160, 20, 40, 60]
    assert [pixel[1] for pixel, _ in frames] == pytest.approx(greens, abs=6)
    assert [pixel[0] > 100 for pixel, _ in frames] == [False] * 4 + [True] * 3
    assert [duration for _, duration in frames] == [200] * 6 + [1200]


def test_a_run_without_frames_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "run.gif")]) == 2
    assert "video_interval" in capsys.readouterr().out
    assert not (tmp_path / "run.gif").exists()
