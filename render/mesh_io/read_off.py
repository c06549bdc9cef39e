"""Read OFF, the text format of Geomview, with texture coordinates. Normals and colours are ignored."""

import re
from pathlib import Path

import numpy as np

from render.mesh_io.numbers import parse_numbers
from render.mesh_io.polygons import Polygons
from render.read_errors import FileError

# The optional letters before OFF mean texture coordinates, colours, normals, a fourth coordinate and n
# dimensions.
KEYWORD = re.compile(r"(ST)?(C)?(N)?(4)?(n)?OFF(?:\s+BINARY)?", re.I)


def read_off(path: Path) -> Polygons:
    """Read the polygons of an OFF file. Colours are ignored.

    Raises:
        FileError: if the file is faulty. If the fault is in one line, the message contains the line number.
    """
    lines = _lines(path.read_bytes())
    uv_columns, counts = _header(lines)
    vertices, faces = counts[:2]
    if vertices + faces > len(lines):
        raise FileError(
            f"its header counts {vertices} vertices and {faces} faces, and {len(lines)} lines follow; "
            "it is cut short"
        )
    values = _vertices(lines[:vertices], uv_columns)
    corners, sizes = _faces(lines[vertices : vertices + faces])
    if not uv_columns:
        return Polygons(values, corners, sizes)
    return Polygons(values[:, :3], corners, sizes, values[:, 3:] * [1, -1] + [0, 1], corners)


def _lines(content: bytes) -> list[tuple[int, bytes]]:
    """Return (line number, text) of every line that is not empty. Comments are removed."""
    if b"\0" in content:
        raise FileError("it holds binary data; only the text form of OFF is read")
    lines = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    stripped = ((number, line.split(b"#", 1)[0].strip()) for number, line in enumerate(lines, start=1))
    return [(number, line) for number, line in stripped if line]


def _header(lines: list[tuple[int, bytes]]) -> tuple[int, list[int]]:
    """Parse the header and remove its lines from `lines`.

    Returns the number of texture coordinates per vertex, and the numbers of vertices, faces and edges.
    """
    words = lines[0][1].decode("latin-1").split() if lines else []
    uv_columns = 0
    if words and not words[0].isdigit():
        found = KEYWORD.fullmatch(words[0])
        if not found:
            raise FileError("it does not begin with OFF; it is no OFF file")
        if found[4] or found[5]:
            raise FileError(f"'{words[0]}' is of other than 3 dimensions; save it as plain OFF")
        uv_columns = 2 if found[1] else 0
        words = words[1:]
        if words[:1] == ["BINARY"]:
            raise FileError("it holds binary data; only the text form of OFF is read")
        if not words:
            del lines[0]
            words = lines[0][1].decode("latin-1").split() if lines else []
    if len(words) < 2 or not all(re.fullmatch(r"\d{1,18}", word, re.ASCII) for word in words):
        raise FileError("its header does not count vertices and faces")
    del lines[0]
    return uv_columns, [int(word) for word in words]


def _vertices(lines: list[tuple[int, bytes]], uv_columns: int) -> np.ndarray:
    """Return the vertices [V, 3 + uv_columns]. If there are texture coordinates, they are the last two
    numbers of a line.
    """
    rows = [line.split() for _, line in lines]
    least = 3 + uv_columns
    for (number, _), row in zip(lines, rows, strict=True):
        if len(row) < least:
            raise FileError(f"line {number}: a vertex needs {least} numbers, it has {len(row)}")
    chosen = (
        (row[:3] + row[len(row) - uv_columns :] for row in rows) if uv_columns else (row[:3] for row in rows)
    )
    return parse_numbers(b"\n".join(b" ".join(row) for row in chosen)).reshape(-1, least)


def _faces(lines: list[tuple[int, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners and sizes of the faces. Numbers after the indices of a face are a colour, which is
    ignored.
    """
    sizes, words = np.zeros(len(lines), dtype=np.int64), []
    for row, (number, line) in enumerate(lines):
        parts = line.split()
        if not parts[0].isdigit() or len(parts) <= int(parts[0][:18]):
            raise FileError(f"line {number}: a face needs its number of corners, then so many vertex indices")
        sizes[row] = int(parts[0])
        words += parts[1 : int(parts[0]) + 1]
    values = parse_numbers(b" ".join(words))
    if (values != np.floor(values)).any():
        raise FileError("a vertex index of a face is not an integer")
    return values.astype(np.int64), sizes
