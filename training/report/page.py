"""What every page of ours is made of: one HTML file that opens from the disk and asks nothing of the network.

Text from outside (a prompt, a path, an error) enters a page only through `escape`, `attribute` or
`embedded_json`. The policy in the page's head forbids the browser every request, so that a slip cannot make
one.
"""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent

# No address is allowed anywhere: only what the file itself holds. The viewer holds a WebAssembly module.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: blob:; connect-src data: blob:; base-uri 'none'; form-action 'none'"
)


def escape(text: object) -> str:
    """Text for HTML, also within quoted attributes."""
    return html.escape(str(text), quote=True)


def embedded_json(value: object) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element."""
    return json.dumps(value).replace("<", "\\u003c")


def data_uri(kind: str, content: bytes) -> str:
    """`content` as an address that holds it, base64; kind is the media type, "image/jpeg"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def script(source: str) -> str:
    """Program text as a classic script element."""
    assert "</script" not in source.lower(), "this text would end its own script element"
    return f"<script>{source}</script>"


def link(path: str) -> str:
    """A path relative to the page as a value of href or src. Bytes that are not UTF-8 are percent-encoded."""
    from urllib.parse import quote

    return escape(quote(path, errors="surrogateescape"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML already; the first of a row names it."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    content = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{content}</table></div>'


def section(title: str, content: str, note: str = "") -> str:
    """A part of the page under a heading (plain text); empty without content, which is HTML."""
    if not content:
        return ""
    remark = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{remark}{content}</section>"


def document(title: str, body: str, scripts: Sequence[str] = ()) -> str:
    """The whole file. title is plain text; body is HTML; scripts are program texts that run in this order."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    own = (HERE / "page.js").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            # An empty icon keeps browsers from looking for one.
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style></head>",
            f"<body>{body}",
            *[script(source) for source in (*scripts, own)],
            "</body></html>\n",
        ]
    )
