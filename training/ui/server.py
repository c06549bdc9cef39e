"""The web server of `train.py --ui`.

It needs the package gradio and uses the network only to serve the page.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.run import OUTPUT_ROOT
from training.ui.job import JobRunner
from training.ui.options import UIOptions, is_loopback

if TYPE_CHECKING:
    import fastapi

logger = logging.getLogger(__name__)

UPLOADS = OUTPUT_ROOT / "ui_uploads"
MOST_UPLOADED = "1gb"
MAJOR_VERSION = 6
INSTALL = f'pip install "gradio>={MAJOR_VERSION},<{MAJOR_VERSION + 1}"'
# Content security policy. It blocks requests to all other servers, regardless of the content of a page.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; "
    "form-action 'self'; frame-ancestors 'self'"
)
# Environment variables that turn off telemetry and the run history. gradio and its packages read them when
# they are imported.
OFFLINE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
}


def require_gradio() -> None:
    """Check that gradio is installed in the required version.

    Raises:
        ValueError: if gradio is missing or has another version. The message contains the install command.
    """
    try:
        version = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"--ui needs the package gradio, which is not installed: {INSTALL}") from None
    if version.partition(".")[0] != str(MAJOR_VERSION):
        raise ValueError(f"--ui needs gradio {MAJOR_VERSION}, and version {version} is installed: {INSTALL}")


def serve(options: UIOptions) -> None:
    """Serve the page until the process receives SIGINT or SIGTERM. Then stop the current run, if any.

    Raises:
        ValueError: if gradio is missing.
        OSError: if the address is in use or does not belong to this machine.
    """
    require_gradio()
    with UIServer(options) as server:
        logger.info("open %s in a browser; Ctrl-C stops the page and the run", server.address)
        if not options.local:
            logger.warning("anyone who can reach %s can start runs and read results", server.address)
        server.run()
        if (job := server.runner.job) is not None and job.active:
            logger.info("stopping the run; it saves a checkpoint")


class UIServer:
    """Context manager that serves the page on a port. On exit, it closes the port and stops the run."""

    def __init__(self, options: UIOptions) -> None:
        self.runner = JobRunner()
        self._socket = _listen(options)
        host = f"[{options.host}]" if ":" in options.host else options.host
        self.address = f"http://{host}:{self._socket.getsockname()[1]}"
        self._server = _uvicorn(make_app(options, self.runner))

    def run(self) -> None:
        """Serve until `stop` is called. In the main thread, SIGINT and SIGTERM also end the server."""
        try:
            self._server.run(sockets=[self._socket])
        except KeyboardInterrupt:
            # After SIGINT, uvicorn closes all connections and raises the signal again. This is a normal end.
            logger.info("the page is closed")

    def stop(self) -> None:
        """Make `run` return."""
        self._server.should_exit = True

    def __enter__(self) -> UIServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.runner.close()
        self._socket.close()


def _listen(options: UIOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((options.host, options.port))
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"--ui_host {options.host} --ui_port {options.port}: {reason}; choose another --ui_port"
        ) from error
    return found


def _uvicorn(app: Any) -> Any:
    import uvicorn

    # Open pages keep a connection to the server. The timeout prevents them from delaying the shutdown.
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=1)
    return uvicorn.Server(config)


def make_app(options: UIOptions, runner: JobRunner) -> Any:
    """Build the application. It serves the page and the files of results, and checks every request."""
    uploads = Path(UPLOADS).resolve()
    uploads.mkdir(parents=True, exist_ok=True)
    os.environ.update(OFFLINE, GRADIO_TEMP_DIR=str(uploads))
    import fastapi
    import gradio as gr

    from training.ui.live import STYLE
    from training.ui.page import Page, build_page

    page = Page(runner, uploads, options.run_options)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_result_files(app)
    plain = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app = gr.mount_gradio_app(
        app,
        build_page(page),
        path="/",
        server_name=options.host,
        footer_links=[],
        run_history=False,
        max_file_size=MOST_UPLOADED,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=plain,
        css=STYLE + PAGE_STYLE,
    )
    return guarded(app, options)


PAGE_STYLE = """
.ui-report { width: 100%; height: 640px; border: 1px solid #8885; border-radius: 8px; background: #fff; }
.ui-error { color: #d33; font-weight: 600; overflow-wrap: anywhere; }
"""


def _add_result_files(app: fastapi.FastAPI) -> None:
    from fastapi.responses import FileResponse, PlainTextResponse

    from training.ui.page import RESULTS_ADDRESS
    from training.ui.results import result_file

    @app.get(RESULTS_ADDRESS + "/{name:path}")
    def file_of_result(name: str):  # noqa: ANN202
        path = result_file(OUTPUT_ROOT, name)
        return PlainTextResponse("no such result", 404) if path is None else FileResponse(path)


ASGI = Callable[[dict, Callable, Callable], Awaitable[None]]


def guarded(app: ASGI, options: UIOptions) -> ASGI:
    """Return the application with a content security policy and, for a local address, a check of host names.

    On a local address, only requests with a local host name are accepted. Without this check, a page of
    another site could access the server through a domain name that resolves to this machine (DNS rebinding).
    """

    async def checked(scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        if options.local and not _is_local(scope):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            return await send({"type": "http.response.body", "body": b"not the address of this server"})

        async def with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message["headers"], policy]}
            await send(message)

        return await app(scope, receive, with_policy)

    return checked


def _is_local(scope: dict) -> bool:
    """Return whether the request has a local host name and does not come from a page of another origin."""
    headers = dict(scope["headers"])
    host = headers.get(b"host", b"").decode("latin-1")
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    origin = headers.get(b"origin", b"").decode("latin-1")
    same = not origin or origin.partition("://")[2] == host
    return same and is_loopback(name)
