"""Test that unreadable pictures are omitted from the report with a warning."""

import pytest
from PIL import Image

from training.report import media
from training.report.media import shrunk, slider, stills_up_to


@pytest.fixture(autouse=True)
def fresh_caches():
    media._warn_once.cache_clear()
    media._shrunk.cache_clear()


def save(path, size=(32, 16)):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)


def test_damaged_still_is_omitted(tmp_path, caplog):
    for step in (10, 20, 30):
        save(tmp_path / f"stills/{step:06d}.png")
    damaged = tmp_path / "stills/000020.png"
    damaged.write_bytes(damaged.read_bytes()[:30])
    page = slider(stills_up_to(tmp_path / "stills", 30))
    assert '"step": 10' in page and '"step": 30' in page and '"step": 20' not in page
    slider(stills_up_to(tmp_path / "stills", 30))
    assert [record.getMessage().partition(" is ")[0] for record in caplog.records] == [f"warning: {damaged}"]


def test_very_large_picture_is_omitted(tmp_path, caplog, monkeypatch):
    save(tmp_path / "a.png", (64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert shrunk(tmp_path / "a.png", 32) is None
    assert f"{tmp_path}/a.png is not shown in the report" in caplog.text


def test_missing_picture_is_omitted(tmp_path):
    assert shrunk(tmp_path / "none.png", 32) is None and slider([tmp_path / "none.png"]) == ""
