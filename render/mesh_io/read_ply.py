"""Read ASCII and binary PLY: positions, polygons or triangle strips, and texture coordinates.

Texture coordinates may belong to corners or to positions.

Source of the format: G. Turk, "The PLY Polygon File Format", 1994.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from render.mesh_io.numbers import parse_numbers
from render.mesh_io.polygons import Polygons, points_only, ranges
from render.read_errors import FileError

TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
# The names of the texture coordinates of vertices in files from Blender, MeshLab and other programs.
UV_NAMES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"))
LONGEST_HEADER = 2**16


@dataclass(frozen=True)
class Property:
    """A property of an element. `count` is the type of the length of a list, and None for a scalar."""

    name: str
    kind: str
    count: str | None = None


@dataclass(frozen=True)
class Element:
    name: str
    rows: int
    properties: tuple[Property, ...]


@dataclass(frozen=True)
class Table:
    """The values of an element: an array [rows] per scalar, and (values, lengths [rows]) per list."""

    scalars: dict[str, np.ndarray]
    lists: dict[str, tuple[np.ndarray, np.ndarray]]


def read_ply(path: Path) -> Polygons:
    """Read the polygons of a PLY file. A texture that the file refers to is not read.

    Raises:
        FileError: if the file is faulty.
    """
    content = path.read_bytes()
    order, elements, start = _header(content)
    tables = _ascii(content[start:], elements) if not order else _binary(content, start, order, elements)
    if "vertex" not in tables:
        raise FileError("it holds no vertices")
    vertex = tables["vertex"]
    if not {"x", "y", "z"} <= vertex.scalars.keys():
        raise FileError("its vertices have no x, y and z")
    v_pos = np.stack([vertex.scalars[axis].astype(np.float64) for axis in "xyz"], -1)
    polygons = _faces(v_pos, tables)
    if len(polygons.sizes) == 0 and len(v_pos):
        splats = {"opacity", "scale_0", "rot_0"} <= vertex.scalars.keys()
        raise points_only(len(v_pos), "Gaussian splats" if splats else "points")
    return _with_uv(polygons, tables)


def _header(content: bytes) -> tuple[str, list[Element], int]:
    """Return the byte order ("" for ASCII), the elements, and the offset of the data."""
    found = re.match(rb"(?:\xef\xbb\xbf)?ply\s*?(\r\n|\n|\r)", content)
    if not found:
        raise FileError("it does not begin with 'ply'; it is no PLY file")
    newline = found[1]
    end = re.search(
        rb"(?:\r\n|\n|\r)end_header[ \t]*(?:" + re.escape(newline) + rb"|\Z)", content[:LONGEST_HEADER]
    )
    if not end:
        raise FileError("its header has no end_header; the file is cut short or damaged")
    order, elements = None, []
    for line in content[: end.start()].decode("latin-1").splitlines()[1:]:
        words = line.split()
        if words[:1] == ["format"] and len(words) > 1:
            if words[1] not in FORMATS:
                raise FileError(f"unknown PLY format '{words[1]}'; use one of {', '.join(FORMATS)}")
            order = FORMATS[words[1]]
        elif words[:1] == ["element"]:
            if len(words) != 3 or not re.fullmatch(r"\d{1,18}", words[2], re.ASCII):
                raise FileError(f"cannot understand '{line.strip()}' in its header")
            elements.append(Element(words[1], int(words[2]), ()))
        elif words[:1] == ["property"]:
            elements[-1:] = [_with_property(elements, words, line)]
    if order is None:
        raise FileError("its header has no format line")
    return order, elements, end.end()


def _with_property(elements: list[Element], words: list[str], line: str) -> Element:
    kinds = words[2:4] if words[1:2] == ["list"] else words[1:2]
    if not elements or len(words) != (5 if len(kinds) == 2 else 3) or not set(kinds) <= TYPES.keys():
        raise FileError(f"cannot understand '{line.strip()}' in its header")
    count = TYPES[kinds[0]] if len(kinds) == 2 else None
    if count is not None and count.startswith("f"):
        raise FileError(f"'{line.strip()}' in its header: the length of a list must be an integer")
    last = elements[-1]
    return Element(last.name, last.rows, (*last.properties, Property(words[-1], TYPES[kinds[-1]], count)))


def _cut_short(element: Element) -> FileError:
    return FileError(
        f"its header counts {element.rows} rows of '{element.name}', and the file holds fewer: cut short"
    )


def _binary(content: bytes, start: int, order: str, elements: list[Element]) -> dict[str, Table]:
    data, tables = np.frombuffer(content, np.uint8), {}
    for element in elements:
        least = sum(np.dtype(p.count or p.kind).itemsize for p in element.properties)
        if element.rows and (not least or element.rows > (len(data) - start) // least):
            raise _cut_short(element)
        lengths = [_list_lengths(data, start, order, element)] if _has_lists(element) else [np.zeros((0, 0))]
        starts, lists, start = _columns(element, start, lengths[0])
        if start > len(data):
            raise _cut_short(element)
        scalars = {}
        for column, p in enumerate(element.properties):
            at = starts[column]
            if p.count is None:
                scalars[p.name] = _gather(data, at, order + p.kind)
            else:
                count = lists[column]
                each = np.repeat(at + np.dtype(p.count).itemsize, count) + np.dtype(p.kind).itemsize * ranges(
                    count
                )
                lists[column] = (_gather(data, each, order + p.kind), count)
        named = {element.properties[column].name: value for column, value in lists.items()}
        tables[element.name] = Table(scalars, named)
    return tables


def _has_lists(element: Element) -> bool:
    return any(p.count for p in element.properties)


def _list_lengths(data: np.ndarray, start: int, order: str, element: Element) -> np.ndarray:
    """Return the lengths [rows, lists] of all lists of an element.

    Rows may have different sizes, so the rows are read one after the other.
    """
    from render.mesh_io.ply_rows import list_lengths

    widths = np.array([np.dtype(p.kind).itemsize for p in element.properties])
    counts = np.array([np.dtype(p.count).itemsize if p.count else 0 for p in element.properties])
    signed = np.array([bool(p.count and p.count.startswith("i")) for p in element.properties])
    found = list_lengths(data, start, element.rows, widths, counts, signed, order == ">")
    if len(found) < element.rows:
        raise _cut_short(element)
    return found


def _columns(
    element: Element, start: int, lengths: np.ndarray
) -> tuple[list[np.ndarray], dict[int, np.ndarray], int]:
    """Return the offset of each property in each row, the list lengths, and the end of the element."""
    sizes, lists = [], {}
    for column, p in enumerate(element.properties):
        size = np.dtype(p.count or p.kind).itemsize
        if p.count:
            lists[column] = lengths[:, len(lists)]
            size = size + np.dtype(p.kind).itemsize * lists[column]
        sizes.append(np.broadcast_to(np.asarray(size, dtype=np.int64), (element.rows,)))
    row = np.sum(sizes, axis=0, dtype=np.int64) if sizes else np.zeros(element.rows, np.int64)
    ends = start + np.cumsum(row)
    at, starts = ends - row, []
    for size in sizes:
        starts.append(at)
        at = at + size
    return starts, lists, int(ends[-1]) if element.rows else start


def _gather(data: np.ndarray, at: np.ndarray, kind: str) -> np.ndarray:
    width = np.dtype(kind).itemsize
    return data[at[:, None] + np.arange(width)].view(kind)[:, 0]


def _ascii(body: bytes, elements: list[Element]) -> dict[str, Table]:
    values = parse_numbers(body)
    tables, start = {}, 0
    for element in elements:
        if element.rows and (
            not element.properties or element.rows > (len(values) - start) // len(element.properties)
        ):
            raise _cut_short(element)
        lengths = np.zeros((element.rows, 0), dtype=np.int64)
        if _has_lists(element):
            from render.mesh_io.ply_rows import list_lengths_of_numbers

            is_list = np.array([p.count is not None for p in element.properties])
            lengths = list_lengths_of_numbers(values, start, element.rows, is_list)
            if len(lengths) < element.rows:
                raise _cut_short(element)
        one = Element(
            element.name,
            element.rows,
            tuple(Property(p.name, "u1", "u1" if p.count else None) for p in element.properties),
        )
        starts, lists, start = _columns(one, start, lengths)
        scalars = {
            p.name: values[at] for p, at in zip(one.properties, starts, strict=True) if p.count is None
        }
        named = {
            one.properties[column].name: (values[np.repeat(starts[column] + 1, count) + ranges(count)], count)
            for column, count in lists.items()
        }
        tables[element.name] = Table(scalars, named)
    return tables


def _faces(v_pos: np.ndarray, tables: dict[str, Table]) -> Polygons:
    lists = tables["face"].lists if "face" in tables else {}
    for name in ("vertex_indices", "vertex_index"):
        if name in lists:
            corners, sizes = lists[name]
            return Polygons(v_pos, corners.astype(np.int64), sizes.astype(np.int64))
    strips = tables["tristrips"].lists if "tristrips" in tables else {}
    for corners, _ in strips.values():
        return Polygons.of_triangles(v_pos, strip_triangles(corners.astype(np.int64)))
    return Polygons.of_triangles(v_pos, np.zeros((0, 3)))


def strip_triangles(strip: np.ndarray) -> np.ndarray:
    """Return the triangles [T,3] of strips that are separated by −1. Every second triangle of a strip is
    reversed, so that all triangles have the same orientation.
    """
    breaks = np.flatnonzero(strip < 0)
    begin = np.zeros(len(strip) + 1, dtype=np.int64)
    begin[breaks + 1] = breaks + 1
    position = np.arange(len(strip)) - np.maximum.accumulate(begin)[: len(strip)]
    faces = (
        np.stack([strip[:-2], strip[1:-1], strip[2:]], -1) if len(strip) > 2 else np.zeros((0, 3), np.int64)
    )
    odd = position[: len(faces)] % 2 == 1
    faces[odd] = faces[odd][:, [1, 0, 2]]
    return faces[(faces >= 0).all(-1)]


def _with_uv(polygons: Polygons, tables: dict[str, Table]) -> Polygons:
    """Add texture coordinates if the file has them, either of corners (list `texcoord`) or of positions.

    v increases upward in PLY, so it is replaced by 1 − v.
    """
    if "face" in tables and "texcoord" in tables["face"].lists:
        values, counts = tables["face"].lists["texcoord"]
        if (counts == 2 * polygons.sizes).all():
            uv = values.astype(np.float64).reshape(-1, 2) * [1, -1] + [0, 1]
            return Polygons(polygons.v_pos, polygons.corners, polygons.sizes, uv, np.arange(len(uv)))
    scalars = tables["vertex"].scalars
    for names in UV_NAMES:
        if set(names) <= scalars.keys():
            uv = np.stack([scalars[name].astype(np.float64) for name in names], -1) * [1, -1] + [0, 1]
            return Polygons(polygons.v_pos, polygons.corners, polygons.sizes, uv, polygons.corners)
    return polygons
