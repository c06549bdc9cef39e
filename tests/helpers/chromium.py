"""Open a page in headless Chromium and report its requests and errors.

The browser is controlled with the DevTools protocol over two pipes (--remote-debugging-pipe). Messages are
JSON and end with a NUL byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The flags enable WebGL without a GPU, and disable requests that the browser sends by itself.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find() -> str | None:
    """Return the path of Chromium or Chrome, or None if neither is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """A context manager that opens a page in a new browser.

    requests: the first 200 characters of each address that the page has requested. errors: console errors and
    uncaught exceptions of the page.
    """

    def __init__(self, size: tuple[int, int] = (1280, 900), dark: bool = False) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._size, self._dark = size, dark
        self._number, self._replies, self._buffer, self._loaded = 0, {}, b"", False

    def __enter__(self) -> "Page":
        self._profile = tempfile.TemporaryDirectory()
        from_us, self._write = os.pipe()
        self._read, to_us = os.pipe()
        command = ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{to_us}', "bash", find(), *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(from_us, to_us),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._session = None
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(info["targetId"] for info in targets if info["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.resize(*self._size)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait(30)
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile.name, ignore_errors=True)
        self._profile.cleanup()

    def open(self, path: Path, timeout: float = 60) -> None:
        """Open a file and wait until all its resources are loaded."""
        self.open_address(path.resolve().as_uri(), timeout)

    def open_address(self, address: str, timeout: float = 60) -> None:
        """Open an address and wait until all its resources are loaded."""
        self._loaded = False
        self.requests, self.errors = [], []
        self.call("Page.navigate", url=address)
        self._listen(lambda: self._loaded, timeout, "the page to load")

    def choose_files(self, selector: str, paths: list[Path]) -> None:
        """Choose files in the file input that matches a CSS selector."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def evaluate(self, expression: str) -> object:
        """Return the value of a JavaScript expression in the page. Promises are awaited."""
        reply = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def wait_for(self, expression: str, timeout: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + timeout
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"waited {timeout} s for {expression}; console: {self.errors}"
            time.sleep(0.1)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Save the page as a PNG. If `whole`, the image has the full height of the page."""
        if whole:
            self.resize(self._size[0], int(self.evaluate("document.documentElement.scrollHeight")))
            time.sleep(1)
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def call(self, method: str, **parameters: object) -> dict:
        """Send a DevTools command and return its result."""
        self._number += 1
        number = self._number
        message: dict = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        self._listen(lambda: number in self._replies, 120, method)
        reply = self._replies.pop(number)
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def _listen(self, finished: Callable[[], bool], timeout: float, what: str) -> None:
        end = time.monotonic() + timeout
        while not finished():
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"waited {timeout} s for {what}"
            received = os.read(self._read, 1 << 20)
            assert received, "the browser is gone"
            *messages, self._buffer = (self._buffer + received).split(b"\0")
            for message in messages:
                self._note(json.loads(message))

    def _note(self, message: dict) -> None:
        if "id" in message:
            self._replies[message["id"]] = message
            return
        method, details = message["method"], message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"][:200])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(details["exceptionDetails"]))
        elif method == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(details["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and details["type"] in ("error", "assert"):
            self.errors.append(str(details["args"]))
