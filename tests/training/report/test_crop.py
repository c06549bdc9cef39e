"""Test cropping: a picture with a white background is cropped to the object in it."""

import pytest
import torch
from PIL import Image

from configs.run import LATLONG
from render.image_io.image import write_png
from training.report.crop import MARGIN, STEPS, WHOLE, crop_cells, crop_view, joined, object_box
from training.report.media import sheet_box, shrunk


def sheet(*boxes, columns=2, rows=1, side=100):
    """Return a picture of white views of side x side pixels with black boxes.

    boxes: one box for each view, (left, top, right, bottom) in pixels of the view.
    """
    picture = Image.new("RGB", (columns * side, rows * side), "white")
    for number, (left, top, right, bottom) in enumerate(boxes):
        x, y = number % columns * side, number // columns * side
        picture.paste((0, 0, 0), (x + left, y + top, x + right, y + bottom))
    return picture


def test_the_box_is_around_the_object_in_all_views():
    assert object_box(sheet((10, 20, 30, 40), (50, 15, 60, 35)), columns=2) == (0.1, 0.15, 0.6, 0.4)
    assert object_box(sheet(), columns=2) is None
    two_rows = sheet((10, 20, 30, 40), (10, 20, 30, 40), (0, 0, 100, 100), rows=2)
    assert object_box(two_rows, 2, 2, used_rows=[0]) == (0.1, 0.2, 0.3, 0.4)


def test_a_joined_box_has_a_margin_and_stays_within_the_view():
    left, top, right, bottom = joined([(0.5, 0.0, 0.6, 0.3), None, (0.4, 0.2, 0.55, 1.0)])
    assert (top, bottom) == (0.0, 1.0)
    assert (
        0.4 - MARGIN - 1 / STEPS < left <= 0.4 - MARGIN and 0.6 + MARGIN <= right < 0.6 + MARGIN + 1 / STEPS
    )
    assert joined([None]) == WHOLE


def test_all_views_of_a_sheet_have_the_same_crop():
    cropped = crop_cells(sheet((40, 20, 60, 40), (40, 20, 60, 40)), 2, 1, (0.4, 0.2, 0.6, 0.4))
    assert cropped.size == (40, 20) and cropped.getextrema() == ((0, 0),) * 3
    assert crop_view(sheet((0, 0, 50, 50), columns=1), (0.0, 0.0, 0.5, 0.5)).size == (50, 50)


def test_the_row_of_the_environment_is_scaled_and_not_cropped():
    picture = Image.new("RGB", (200, 200), "white")
    picture.paste((9, 9, 9), (0, 100, 200, 200))
    cropped = crop_cells(picture, 2, 2, (0.25, 0.0, 0.75, 1.0), maps=[1])
    assert cropped.size == (100, 200)
    assert cropped.getpixel((99, 110)) == (9, 9, 9) and cropped.getpixel((50, 190)) == (255, 255, 255)


@pytest.mark.parametrize("rows", ["shaded,normal", f"shaded,{LATLONG}", "shaded,mask"])
def test_stills_are_cropped_to_the_object_in_any_of_them(tmp_path, rows):
    for number, columns in ((1, slice(40, 50)), (2, slice(50, 70))):
        image = torch.ones(200, 400, 3)
        image[30:60, columns] = 0
        if rows != "shaded,normal":
            image[100:] = 0.2
        write_png(tmp_path / f"{number:06d}.png", image, {"rows": rows})
    paths = sorted(tmp_path.glob("*.png"))
    box = sheet_box(paths)
    assert box[0] <= 0.4 and box[2] >= 0.7 and (box[2] - box[0]) < 0.45 and (box[3] - box[1]) < 0.45
    picture = shrunk(paths[0], 1280, box=box)
    assert picture.width == pytest.approx(400 * (box[2] - box[0]), abs=4)
    (tmp_path / "000003.png").write_bytes(b"damaged")
    assert sheet_box([*paths, tmp_path / "000003.png"]) == box
