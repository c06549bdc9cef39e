"""Test the picture of two-faced shapes with synthetic pictures of the benchmark."""

import pytest
from PIL import Image

from data.make_two_faced_picture import CAPTION, GAP, SIDE, main


def write_picture(folder, setting, front, back):
    path = folder / f"{setting}-chair-1-shape" / "picture.png"
    path.parent.mkdir(parents=True)
    image = Image.new("RGB", (64, 32), front)
    image.paste(Image.new("RGB", (32, 32), back), (32, 0))
    image.save(path)


def test_each_setting_shows_front_then_back(tmp_path):
    write_picture(tmp_path, "plain", "red", "blue")
    write_picture(tmp_path, "four", "lime", "yellow")
    options = ["--runs", str(tmp_path), "--settings", "plain", "four", "--categories", "chair"]
    assert main([*options, "--seeds", "1", "--out", str(tmp_path / "faces.png")]) == 0
    found = Image.open(tmp_path / "faces.png")
    assert found.size == (4 * SIDE + GAP, CAPTION + SIDE)
    columns = [SIDE // 2, SIDE + SIDE // 2, 2 * SIDE + GAP + 5, 3 * SIDE + GAP + 5]
    colours = [found.getpixel((column, CAPTION + SIDE // 2)) for column in columns]
    assert colours == [(255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 0)]


def test_a_run_without_a_picture_is_named(tmp_path, capsys):
    options = ["--runs", str(tmp_path), "--settings", "plain", "--out", str(tmp_path / "faces.png")]
    with pytest.raises(SystemExit) as error:
        main(options)
    assert error.value.code == 2 and "plain-car-1-shape" in capsys.readouterr().err
