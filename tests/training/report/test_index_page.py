"""Test pictures, states, links and text of the overview page of a sweep.

The page is read with an HTML parser and in a real browser.
"""

import io
from html.parser import HTMLParser

import chromium
import numpy as np
import pytest
from PIL import Image

from training.report.index_page import FRAMES, SIDE, Card, Stage, thumbnail, write_index

NASTY = 'A "mug" <b>&amp; </div><script>alert(1)</script>'


def solid(path, colour, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def views(stage):
    """Return the mean colour at the centre of each view in a thumbnail strip."""
    content, number = thumbnail(stage)
    strip = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(float)
    assert strip.shape == (SIDE, number * SIDE, 3)
    middle = slice(SIDE // 2 - 9, SIDE // 2 + 9)
    return [strip[middle, k * SIDE :][:, middle].mean((0, 1)).round(-1).tolist() for k in range(number)]


def test_a_turntable_becomes_a_strip_of_views_evenly_around(tmp_path):
    for k in range(100):
        solid(tmp_path / f"validate/shaded/{k:03d}.png", (k * 2, 200, 0))
    found = views(Stage("painted", tmp_path, "shaded"))
    assert found == [[round(int(k * 100 / FRAMES) * 2, -1), 200, 0] for k in range(FRAMES)]


def test_without_a_turntable_the_newest_picture_shows(tmp_path):
    stage = Stage("shape", tmp_path, "normal")
    assert thumbnail(stage) is None
    solid(tmp_path / "video_frames/000010.jpg", (0, 0, 200))
    assert views(stage) == [[0, 0, 200]]
    sheet = Image.new("RGB", (4 * 32, 3 * 32))
    for k in range(4):
        sheet.paste((50 * k, 100, 0), (32 * k, 0, 32 * k + 32, 32))
    (tmp_path / "stills").mkdir()
    sheet.save(tmp_path / "stills/000020.png")
    assert views(stage) == [[50 * k, 100, 0] for k in range(4)]
    solid(tmp_path / "video_frames/000030.jpg", (200, 0, 0))
    assert views(stage) == [[200, 0, 0]]


def test_a_picture_that_is_not_square_keeps_its_shape(tmp_path):
    solid(tmp_path / "video_frames/000010.jpg", (0, 0, 0), (80, 20))
    strip = np.asarray(Image.open(io.BytesIO(thumbnail(Stage("shape", tmp_path, "normal"))[0])).convert("L"))
    assert (strip < 128).any(1).sum() == pytest.approx(SIDE / 4, abs=2)
    assert (strip < 128).any(0).all()


def test_a_damaged_picture_is_none_and_is_read_when_it_is_whole(tmp_path):
    stage, path = Stage("shape", tmp_path, "normal"), tmp_path / "video_frames/000010.jpg"
    solid(path, (0, 200, 0))
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    assert thumbnail(stage) is None
    path.write_bytes(whole)
    assert views(stage) == [[0, 200, 0]]


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("href", "src")]

    def handle_data(self, data):
        self.words.append(data.strip())


@pytest.fixture
def folder(tmp_path):
    """Return a folder with two results.

    One result is finished and has all optional files. The other result is a run that failed before its first
    picture.
    """
    (tmp_path / "a mug%").mkdir()
    for name in ("report.html", "dmtet_mesh/mesh.glb"):
        (tmp_path / "a mug%" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a mug%" / name).write_text("x")
    for k in range(100):
        solid(tmp_path / f"a mug%/validate/shaded/{k:03d}.png", (k, 0, 0), (8, 8))
    return tmp_path


def write(folder, live=False):
    cards = [
        Card(
            "a mug%",
            {"text": NASTY, "seed": "1"},
            "done",
            "",
            [Stage("painted", folder / "a mug%", "shaded")],
            {"Paint it": f"python3 train.py --text '{NASTY}'"},
        ),
        Card("b", {"seed": "2"}, "failed", f"step 3: {NASTY}", [Stage("painted", folder / "b", "shaded")]),
    ]
    write_index(folder / "index.html", f"Results {NASTY}", "train.py --grid seed=1,2", cards, live)
    return (folder / "index.html").read_text(encoding="utf-8")


def test_external_text_is_escaped_and_links_exist(folder):
    page = Reader(write(folder))
    assert "script" not in page.tags and "b" not in page.tags
    assert page.words.count(NASTY) == 1 and f"step 3: {NASTY}" in page.words
    assert "2 results: 1 done, 1 failed. Point at a picture to turn it." in page.words
    assert page.links == ["a%20mug%25/", "a%20mug%25/report.html", "a%20mug%25/dmtet_mesh/mesh.glb"]


def test_the_commands_that_continue_with_a_result_are_text(folder):
    page = Reader(write(folder))
    assert f"python3 train.py --text '{NASTY}'" in page.words and "Continue with this result" in page.words
    assert page.tags.count("details") == 1


def test_a_thumbnail_is_filled_with_the_object(tmp_path):
    for k in range(FRAMES):
        frame = Image.new("RGB", (96, 96), "white")
        frame.paste((200, 0, 0), (40 + k % 2 * 4, 36, 52 + k % 2 * 4, 60))
        (tmp_path / "validate/normal").mkdir(parents=True, exist_ok=True)
        frame.save(tmp_path / f"validate/normal/{k:03d}.png")
    content, number = thumbnail(Stage("shape", tmp_path, "normal"))
    strip = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    for k in range(number):
        rows = (strip[:, k * SIDE : (k + 1) * SIDE, 1] < 128).any(1)
        # Thumbnails are cropped: the object is only a quarter as high as the frame, but at least two thirds
        # as high as the thumbnail.
        assert rows.sum() > SIDE * 2 / 3


def test_only_the_page_of_a_running_sweep_reloads(folder):
    assert 'http-equiv="refresh"' in write(folder, live=True)
    assert 'http-equiv="refresh"' not in write(folder, live=False)


@pytest.mark.skipif(
    chromium.find() is None, reason=f"no browser: none of {', '.join(chromium.NAMES)} is on this machine"
)
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_fits_its_width(folder, width):
    write(folder)
    with chromium.Page((width, 900)) as browser:
        browser.open(folder / "index.html")
        browser.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.skipif(
    chromium.find() is None, reason=f"no browser: none of {', '.join(chromium.NAMES)} is on this machine"
)
def test_the_page_makes_no_request_and_logs_no_error(folder):
    write(folder)
    with chromium.Page() as browser:
        browser.open(folder / "index.html")
        assert browser.evaluate("document.querySelectorAll('.card').length") == 2
        turn = "getComputedStyle(document.querySelector('.turn'))"
        assert browser.evaluate(f"{turn}.backgroundImage").startswith('url("data:image/jpeg')
        assert browser.evaluate(f"{turn}.width") == f"{SIDE}px"
        assert browser.evaluate("document.querySelector('a').getAttribute('href')") == "a%20mug%25/"
        assert not browser.errors
        assert [address for address in browser.requests if not address.startswith(("file:", "data:"))] == []
