"""Common parts of all pages. A page is one HTML file that can be opened from disk without a network.

External text (a prompt, a path, an error) is inserted into a page only through `escape` or `embedded_json`.
The content security policy in the page's head blocks all network requests, even if markup was not escaped.
"""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent

# Content security policy: only content of the file itself is allowed. wasm-unsafe-eval is needed for the
# viewer's WebAssembly module.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: blob:; connect-src data: blob:; base-uri 'none'; form-action 'none'"
)


def escape(text: object) -> str:
    """Escape text for HTML content and for quoted attributes."""
    return html.escape(str(text), quote=True)


def embedded_json(value: object) -> str:
    """Return JSON for the content of a script element. The JSON cannot contain the element's end tag."""
    return json.dumps(value).replace("<", "\\u003c")


def data_uri(kind: str, content: bytes) -> str:
    """Return `content` as a base64 data URI. kind: the media type, for example "image/jpeg"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def script(source: str) -> str:
    """Return JavaScript source as a classic script element."""
    assert "</script" not in source.lower(), "this text would end its own script element"
    return f"<script>{source}</script>"


def link(path: str) -> str:
    """Return a path relative to the page as a value of href or src. Non-UTF-8 bytes are percent-encoded."""
    from urllib.parse import quote

    return escape(quote(path, errors="surrogateescape"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Return an HTML table. The cells are HTML. The first cell of each row is its header."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    content = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{content}</table></div>'


def section(title: str, content: str, note: str = "") -> str:
    """Return a section with a heading, or "" if there is no content. title: plain text. content: HTML."""
    if not content:
        return ""
    remark = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{remark}{content}</section>"


def document(title: str, body: str, scripts: Sequence[str] = ()) -> str:
    """Return the complete HTML file. title: plain text. body: HTML. scripts: JavaScript sources, in order."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    own = (HERE / "page.js").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            # An empty icon prevents browsers from requesting one.
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style></head>",
            f"<body>{body}",
            *[script(source) for source in (*scripts, own)],
            "</body></html>\n",
        ]
    )
