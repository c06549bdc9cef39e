"""Open the report from the disk in a real browser: the model is shown without errors or requests."""

import base64
import io
from dataclasses import replace

import chromium
import numpy as np
import pytest
import torch
from PIL import Image
from report_run import NASTY, example_info, write_run

from render.image_io.hdr import write_hdr
from training.report import model_viewer
from training.report.run_page import RunState, run_page

SIZE = (1280, 900)
MODEL = "document.querySelector('model-viewer')"

pytestmark = pytest.mark.skipif(
    chromium.find() is None, reason=f"no browser: none of {', '.join(chromium.NAMES)} is on this machine"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "a folder")


@pytest.fixture(scope="module")
def browser():
    with chromium.Page(SIZE) as page:
        yield page


def show(browser, folder, state: RunState, name: str = "report.html", **options):
    (folder / name).write_text(
        run_page(example_info(folder, title=NASTY), state, **options), encoding="utf-8"
    )
    browser.open(folder / name)


def no_request_left_and_no_error(browser) -> bool:
    outside = [address for address in browser.requests if not address.startswith(("file:", "data:", "blob:"))]
    pages = [address for address in browser.requests if address.startswith("file:")]
    assert not outside and not browser.errors
    return all(address.endswith(".html") for address in pages)


def test_a_finished_run(browser, folder):
    show(browser, folder, RunState("done", 100))
    browser.wait_for(f"{MODEL}.loaded")
    size = browser.evaluate(f"{MODEL}.getDimensions().toString()").replace("m", "").split()
    assert [float(length) for length in size] == pytest.approx([1.0, 1.6, 1.2], rel=0.02)
    assert browser.evaluate("document.querySelector('h1').textContent") == NASTY
    browser.wait_for("document.querySelector('video').readyState >= 2")
    assert no_request_left_and_no_error(browser)


@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_fits_its_width(browser, folder, width):
    (folder / "fit.html").write_text(run_page(example_info(folder), RunState("done", 100)), encoding="utf-8")
    browser.resize(width, 900)
    browser.open(folder / "fit.html")
    browser.wait_for(f"{MODEL}.loaded")
    browser.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    found = browser.evaluate("document.documentElement.scrollWidth")
    browser.resize(*SIZE)
    assert found <= width


def test_the_model_is_lit_by_the_environment_of_the_run(browser, folder, tmp_path):
    """A red environment map gives a red image."""
    map_file = tmp_path / "red.hdr"
    write_hdr(map_file, torch.tensor([1.0, 0.0, 0.0]).expand(16, 32, 3).contiguous())
    info = replace(example_info(folder), envmap=str(map_file))
    (folder / "red.html").write_text(run_page(info, RunState("done", 100)), encoding="utf-8")
    browser.open(folder / "red.html")
    browser.wait_for(f"{MODEL}.loaded && {MODEL}.environmentImage !== null")
    browser.wait_for(f"{MODEL}.modelIsVisible")
    address = browser.evaluate(f"{MODEL}.toDataURL('image/png')")
    assert not browser.errors
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGBA"))
    red, green, _ = pixels[pixels[..., 3] == 255][:, :3].astype(float).mean(0)
    assert red > 60 and green < red / 10


def test_the_slider_and_the_layers(browser, folder):
    show(browser, folder, RunState("done", 100))
    image = "document.querySelector('.still img')"
    browser.wait_for(f"{image}.complete && {image}.naturalWidth > 0")
    last = browser.evaluate(f"{image}.src")
    move = "const s = document.querySelector('input[type=range]'); s.focus(); s.value = 0;"
    browser.evaluate(f"(() => {{ {move} s.dispatchEvent(new Event('input', {{bubbles: true}})); }})()")
    assert browser.evaluate("document.querySelector('output').textContent") == "step 20"
    assert browser.evaluate(f"{image}.src") != last
    # The image has two rows of four square cells. Only one row is shown, which is four times as wide as high.
    assert browser.evaluate(f"{image}.naturalWidth / {image}.naturalHeight") == 2
    box = "document.querySelector('.still').getBoundingClientRect()"
    assert browser.evaluate(f"{box}.width / {box}.height") == pytest.approx(4, rel=0.02)
    browser.evaluate("document.querySelectorAll('input[type=radio]')[1].click()")
    assert browser.evaluate(f"{image}.style.objectPosition") == "0px 100%"
    assert no_request_left_and_no_error(browser)


def test_a_lighter_copy_is_the_same_size(browser, folder, monkeypatch, request):
    monkeypatch.setattr(model_viewer, "AS_IT_IS", 0)
    # The embedded model is cached, and its cache does not depend on this limit.
    model_viewer._embed.cache_clear()
    request.addfinalizer(model_viewer._embed.cache_clear)
    show(browser, folder, RunState("done", 100), "lighter.html")
    assert "lighter copy" in browser.evaluate("document.body.textContent")
    browser.wait_for(f"{MODEL}.loaded")
    size = browser.evaluate(f"{MODEL}.getDimensions().toString()").replace("m", "").split()
    assert [float(length) for length in size] == pytest.approx([1.0, 1.6, 1.2], rel=0.02)
    assert no_request_left_and_no_error(browser)


def test_page_of_a_running_run_shows_its_age(browser, folder):
    show(browser, folder, RunState("running", 60, written=0.0), "running.html")
    assert "the run may have been killed" in browser.evaluate("document.getElementById('age').textContent")
    assert browser.evaluate(MODEL) is None
    assert no_request_left_and_no_error(browser)


def test_browser_check_detects_errors_and_requests(browser, folder):
    (folder / "bad.html").write_text(
        '<img src="http://127.0.0.1:9/x.png"><script>console.error("oh"); undefined.x</script>'
    )
    browser.open(folder / "bad.html")
    assert "http://127.0.0.1:9/x.png" in browser.requests
    assert len([error for error in browser.errors if "oh" in error or "TypeError" in error]) == 2
