"""Test a toy run in a real browser, from the upload of a mesh to the 3D model in the page."""

import importlib.util
import os
import threading
import urllib.error
import urllib.request

import chromium
import pytest
from toy_config import TINY

from training.ui.options import UIOptions

if importlib.util.find_spec("gradio") is None:
    pytest.skip("gradio is not installed (optional package of train.py --ui)", allow_module_level=True)

from training.ui.server import UIServer

needs_browser = pytest.mark.skipif(
    chromium.find() is None, reason=f"no browser: none of {', '.join(chromium.NAMES)} is on this machine"
)
TETRAHEDRON = "v -1 -1 -1\nv 1 1 -1\nv 1 -1 1\nv -1 1 1\nf 1 2 3\nf 1 4 2\nf 1 3 4\nf 2 4 3\n"
STEPS = {"geometry.iter": 2, "geometry.coarse_iter": 1, "appearance.iter": 2, "appearance.coarse_iter": 1}


def words(values):
    return [
        word
        for key, value in values.items()
        for word in (f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value).lower()]))
    ]


@pytest.fixture(scope="module")
def server(model_folder, tmp_path_factory):
    """Start a server in a new folder. Runs have toy size."""
    folder, before = tmp_path_factory.mktemp("ui"), os.getcwd()
    os.chdir(folder)
    tiny = {key: value for key, value in TINY.items() if key != "text"}
    options = words({**tiny, "sd_model": model_folder, "save_interval": 1, "video_interval": 0, **STEPS})
    try:
        with UIServer(UIOptions("127.0.0.1", 0, tuple(options))) as server:
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            yield server
            server.stop()
            thread.join(30)
            assert not thread.is_alive()
    finally:
        os.chdir(before)


def set_text(browser, selector, text):
    """Set the text of an input field as if a user had typed it."""
    browser.evaluate(
        f"""(() => {{ const box = document.querySelector({selector!r});
        const kind = box instanceof HTMLTextAreaElement ? HTMLTextAreaElement : HTMLInputElement;
        Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(box, {text!r});
        box.dispatchEvent(new Event("input", {{bubbles: true}})); }})()"""
    )


STATE = "document.querySelector('[data-state]')?.dataset.state"
REPORT = "document.querySelector('iframe.ui-report')?.contentDocument"


@needs_browser
def test_from_an_upload_to_the_model(server, tmp_path):
    (tmp_path / "my mesh.obj").write_text(TETRAHEDRON)
    with chromium.Page((1280, 1000)) as browser:
        browser.open_address(server.address)
        browser.wait_for("document.querySelector('#start') !== null")
        # Wait until the page has loaded its state, which contains no run yet.
        browser.wait_for("document.body.textContent.includes('No run has been started yet')")
        browser.evaluate("document.querySelectorAll('input[type=radio]')[2].click()")
        browser.wait_for("document.querySelector('#mesh input[type=file]') !== null")
        browser.choose_files("#mesh input[type=file]", [tmp_path / "my mesh.obj"])
        browser.wait_for("document.querySelector('#mesh').textContent.includes('my mesh')")
        set_text(browser, "#prompt textarea", "A stone <b>mug")
        browser.evaluate("document.querySelector('#start').click()")
        browser.wait_for(f"{STATE} === 'running'")
        browser.open_address(server.address)
        browser.wait_for(f"['running', 'done'].includes({STATE})")
        command = browser.evaluate("document.querySelector('pre.command').textContent")
        assert "train.py --text 'A stone <b>mug' --quick" in command and "my mesh.obj" in command
        browser.wait_for(f"{STATE} !== 'running'", 240)
        text = browser.evaluate("document.querySelector('[data-state]').textContent")
        assert browser.evaluate(STATE) == "done", text
        browser.wait_for(f"{REPORT}?.querySelector('model-viewer') != null")
        # The viewer loads the model only when the viewer is visible.
        browser.evaluate("document.querySelector('iframe.ui-report').scrollIntoView()")
        browser.wait_for(f"{REPORT}?.querySelector('model-viewer')?.loaded === true")
        assert browser.evaluate("document.querySelectorAll('img.still').length") == 2
        assert browser.evaluate("document.querySelectorAll('.ui-live svg.plot').length") == 2
        assert browser.evaluate(f"{REPORT}.querySelector('h1').textContent") == "A stone <b>mug"
        outside = [a for a in browser.requests if not a.startswith((server.address, "data:", "blob:"))]
        assert not outside and not browser.errors


def status_of(address, **headers):
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_addresses_outside_of_results_and_uploads_are_refused(server):
    assert status_of(server.address) == 200
    for name in ("/etc/passwd", os.path.abspath("secret.txt"), os.path.abspath("out/secret.txt")):
        assert status_of(f"{server.address}/gradio_api/file={name}") in (403, 404)
        assert status_of(f"{server.address}/results/{name}") == 404
    assert status_of(f"{server.address}/results/../../etc/passwd") == 404


def test_requests_for_another_host_or_from_another_origin_are_refused(server):
    assert status_of(server.address, Host="evil.example") == 403
    assert status_of(server.address, Host="127.0.0.1.evil.example:80") == 403
    assert status_of(server.address, Origin="http://evil.example") == 403
    assert status_of(server.address, Origin=server.address) == 200
