"""Read binary and ASCII STL."""

import logging
import re
from pathlib import Path

import numpy as np

from render.mesh_io.numbers import parse_numbers
from render.mesh_io.polygons import Polygons
from render.read_errors import FileError

logger = logging.getLogger(__name__)

# The sizes of the header and of a triangle in a binary file, in bytes. The header contains 80 bytes of
# comment and the number of triangles.
HEADER, RECORD = 84, 50
RECORD_TYPE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
VERTEX = re.compile(rb"\bvertex[ \t]+([^\r\n]*)", re.I)
FACET = re.compile(rb"(?<!end)facet\b", re.I)


def read_stl(path: Path) -> Polygons:
    """Read the triangles of an STL file. A binary file may begin with 'solid', as an ASCII file does.

    Raises:
        FileError: if the file is faulty.
    """
    content = path.read_bytes()
    if _is_ascii(content):
        if b"endsolid" not in content[-1024:].lower():
            logger.warning("mesh file %s: it does not end with endsolid; it may be cut short", path)
        return _ascii(content)
    if len(content) < HEADER:
        raise FileError(f"it has {len(content)} bytes, less than the header of an STL file; it is cut short")
    count = int.from_bytes(content[HEADER - 4 : HEADER], "little")
    stored = (len(content) - HEADER) // RECORD
    if count == 0 and stored and (len(content) - HEADER) % RECORD == 0:
        # A program that writes triangles one by one may leave the number in the header at 0. The number is
        # then computed from the file size.
        count = stored
    if count > stored:
        raise FileError(f"its header counts {count} triangles, and the file holds {stored}; it is cut short")
    if extra := len(content) - HEADER - RECORD * count:
        logger.info("mesh file %s: %d bytes after the last triangle are ignored", path, extra)
    records = np.frombuffer(content, RECORD_TYPE, count, HEADER)
    v_pos = records["corners"].reshape(-1, 3).astype(np.float64)
    return Polygons.of_triangles(v_pos, np.arange(len(v_pos)).reshape(-1, 3))


def _is_ascii(content: bytes) -> bool:
    """Return whether a file is ASCII.

    An ASCII file begins with 'solid' or 'facet'. In addition, the length of the file must differ from the
    length of a binary file with the same header.
    """
    count = int.from_bytes(content[HEADER - 4 : HEADER], "little")
    if len(content) == HEADER + RECORD * count:
        return False
    begin = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return begin.startswith((b"solid", b"facet")) and b"\0" not in content[:1024]


def _ascii(content: bytes) -> Polygons:
    vertices, facets = VERTEX.findall(content), sum(1 for _ in FACET.finditer(content))
    if len(vertices) != 3 * facets:
        raise FileError(
            f"it holds {len(vertices)} vertices for {facets} triangles; it is cut short, or has polygons"
        )
    values = parse_numbers(b"\n".join(vertices))
    if len(values) != 3 * len(vertices):
        raise FileError("a vertex does not have 3 numbers")
    return Polygons.of_triangles(values.reshape(-1, 3), np.arange(len(vertices)).reshape(-1, 3))
