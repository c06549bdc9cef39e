"""Read Wavefront OBJ: the statements v, vt and f, and the objects and materials of faces (o, g, usemtl).

Files in the usual form are parsed with array operations. Other files and faulty files are read line by line,
so that error messages contain the line number.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from render.mesh_io.numbers import parse_numbers
from render.mesh_io.polygons import Polygons
from render.mesh_io.structure import Node, Part, Structure
from render.read_errors import FileError

# This pattern matches statements with white space before the name or a tab after the name. Files that contain
# such statements or the bytes in RARE are read line by line.
INDENTED = re.compile(rb"(?m)^[ \t]+(?:v|vt|f)[ \t]|^(?:v|vt|f)\t")
# The bytes of line continuations, rare line endings and control characters.
RARE = (b"\\", b"\r", b"\0", b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x85", b"\xe2\x80")
SPACE, NEWLINE, SLASH, NINE = b" \n/9"
NO_UV = -1


def read_obj(path: Path) -> Polygons:
    """Read the polygons of an OBJ file. Its objects become nodes.

    Raises:
        FileError: if the file is faulty. The message contains the line number.
    """
    text = read_text(path)
    found = _in_bulk(text.replace(b"\r\n", b"\n")) or _line_by_line(text)
    if len(found.sizes) == 0 and re.search(rb"(?m)^(?:surf|curv)[ \t]", text):
        raise FileError("it holds free-form curves or surfaces and no faces; export it as polygons")
    changes = _changes(text)
    if len(found.sizes) == 0 or not any(name == "usemtl" for _, name, _ in changes):
        return found
    parts, structure = obj_parts(changes, len(found.sizes))
    return replace(found, parts=parts, structure=structure)


def read_text(path: Path) -> bytes:
    """Return the content of a text file as UTF-8 without a byte order mark."""
    text = path.read_bytes()
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = text.decode("utf-16").encode()
    return text.removeprefix(b"\xef\xbb\xbf")


def material_names(path: Path) -> list[str]:
    """Return the names of the used materials in the order of first use. The name "" means no material."""
    changes = _changes(read_text(path))
    return _names(changes)


# The number of faces before a statement, the statement's name, and its value.
Change = tuple[int, str, str]


def obj_parts(changes: list[Change], faces: int) -> tuple[Int[np.ndarray, " P"], Structure]:
    """Return the part index of each of `faces` polygons, and the structure.

    There is a node for each object. If the file has no objects, there is a node for each group.
    """
    named = "o" if any(name == "o" for _, name, _ in changes) else "g"
    materials, nodes, parts = _names(changes), [""], {}
    owners, node, material, start = np.zeros(faces, dtype=np.int64), 0, "", 0
    for before, name, value in [*changes, (faces, "", "")]:
        if before > start:
            key = node, materials.index(material)
            owners[start:before] = parts.setdefault(key, len(parts))
            start = before
        if name == named:
            node = nodes.index(value) if value in nodes else len(nodes)
            nodes += [value] * (node == len(nodes))
        elif name == "usemtl":
            material = value
    used = sorted({node for node, _ in parts})
    structure = Structure(
        tuple(Node(nodes[node] or "mesh", mesh_name=nodes[node] or "mesh") for node in used),
        tuple(Part(used.index(node), material) for node, material in parts),
        len(materials),
    )
    return owners, structure


def _names(changes: list[Change]) -> list[str]:
    first = next((before for before, name, _ in changes if name == "usemtl"), None)
    names = [""] * (first != 0) + [value for _, name, value in changes if name == "usemtl"]
    return list(dict.fromkeys(names))


def _changes(text: bytes) -> list[Change]:
    """Return the statements o, g and usemtl in the order of the file."""
    found, faces = [], 0
    if not re.search(rb"(?m)^[ \t]*usemtl[ \t]", text):
        return found
    plain = text.replace(b"\r\n", b"\n")
    if any(mark in plain for mark in RARE) or INDENTED.search(plain):
        for _, words in _statements(text, ("f", "fo", "o", "g", "usemtl")):
            if words[0] in ("f", "fo"):
                faces += 1
            else:
                found.append((faces, words[0], " ".join(words[1:])))
        return found
    lines = plain.split(b"\n")
    before = np.cumsum([line.startswith(b"f ") for line in lines])
    for number, line in enumerate(lines):
        if line.startswith((b"usemtl ", b"o ", b"g ")):
            name, _, value = line.decode("utf-8", errors="replace").split("#", 1)[0].partition(" ")
            found.append((int(before[number]), name, " ".join(value.split())))
    return found


def _in_bulk(text: bytes) -> Polygons | None:
    """Parse a file with array operations. Return None unless all corners have the same form and positive
    indices.
    """
    if any(mark in text for mark in RARE):
        return None
    # Searching for INDENTED takes seconds in a large file, so the search is skipped if no match is possible.
    if (b"\t" in text or b"\n " in text or text.startswith(b" ")) and INDENTED.search(text):
        return None
    lines = text.split(b"\n")
    v_pos, uv = _table(lines, b"v ", 3), _table(lines, b"vt ", 1)
    found = _corners(b"\n".join([line[2:] for line in lines if line.startswith(b"f ")]))
    if v_pos is None or uv is None or found is None:
        return None
    corners, sizes = found
    if not _within(corners[:, 0], len(v_pos)) or sizes.min() < 3:
        return None
    if corners.shape[1] == 1:
        return Polygons(v_pos, corners[:, 0], sizes)
    if not _within(corners[:, 1], len(uv)):
        return None
    return Polygons(v_pos, corners[:, 0], sizes, uv * [1, -1] + [0, 1], corners[:, 1])


def _table(lines: list[bytes], name: bytes, least: int) -> Float[np.ndarray, "N K"] | None:
    """Return the first numbers of all statements with this name: [N,3] for v, [N,2] for vt.

    A missing second number of vt is 0. The result is None if a statement has fewer than `least` numbers or
    contains anything except numbers.
    """
    chosen = [line[len(name) :] for line in lines if line.startswith(name)]
    columns = 3 if name == b"v " else 2
    if not chosen:
        return np.zeros((0, columns))
    text = b"\n".join(chosen)
    counts = _words_per_line(text)
    try:
        values = parse_numbers(text)
    except FileError:
        return None
    if len(values) != counts.sum() or counts.min() < least:
        return None
    starts = np.cumsum(counts) - counts
    table = np.zeros((len(counts), columns))
    for column in range(columns):
        present = counts > column
        table[present, column] = values[starts[present] + column]
    return table


def _words_per_line(text: bytes) -> Int[np.ndarray, " L"]:
    data = np.frombuffer(text, np.uint8)
    ends = np.append(np.flatnonzero(data == NEWLINE), len(data))
    return np.diff(np.searchsorted(_word_starts(data), ends), prepend=0)


def _word_starts(data: np.ndarray) -> Int[np.ndarray, " W"]:
    solid = data > SPACE
    solid[1:] &= data[:-1] <= SPACE
    return np.flatnonzero(solid)


def _corners(text: bytes) -> tuple[Int[np.ndarray, "C K"], Int[np.ndarray, " F"]] | None:
    """Return the zero-based indices (position) or (position, uv) of each corner, and the corners per face.

    The result is None if not all corners have the same form.
    """
    data = np.frombuffer(text, np.uint8)
    plain = (data >= SLASH) & (data <= NINE) | (data == SPACE) | (data == NEWLINE)
    if len(data) == 0 or not plain.all():
        return None
    words, slash = _word_starts(data), data == SLASH
    numbers, doubled = 1, 0
    if slash.any():
        slashes = np.add.reduceat(slash.view(np.uint8), words)
        doubled = int((slash[1:] & slash[:-1]).sum())
        ends_badly = slash[-1] or (slash[:-1] & (data[1:] <= SPACE)).any() or slash[words].any()
        if (slashes != slashes[0]).any() or slash.sum() != int(slashes[0]) * len(words) or ends_badly:
            return None
        if slashes[0] > 2 or doubled not in (0, len(words)) or (doubled and slashes[0] != 2):
            return None
        numbers = int(slashes[0]) + 1 - bool(doubled)
    values = np.fromstring(text.replace(b"/", b" "), dtype=np.int64, sep=" ").reshape(-1, numbers)
    return values[:, : 2 if numbers > 1 and not doubled else 1] - 1, _words_per_line(text)


def _within(indices: Int[np.ndarray, " C"], count: int) -> bool:
    return bool((indices >= 0).all() and (indices < count).all())


def _line_by_line(text: bytes) -> Polygons:
    positions: list[list[float]] = []
    uv: list[list[float]] = []
    corners: list[tuple[int, int]] = []
    sizes: list[int] = []
    lines: list[int] = []
    for number, words in _statements(text):
        try:
            if words[0] == "v":
                positions.append(_numbers(words, 3, 3))
            elif words[0] == "vt":
                uv.append(_numbers(words, 1, 2))
            else:
                corners += _face(words, len(positions), len(uv))
                sizes.append(len(words) - 1)
                lines.append(number)
        except ValueError as error:
            raise FileError(f"line {number}: {error}") from error
    table, counts = np.array(corners, dtype=np.int64).reshape(-1, 2), np.array(sizes, dtype=np.int64)
    for column, what, count in ((0, "vertex", len(positions)), (1, "uv", len(uv))):
        late = np.flatnonzero(table[:, column] >= count)
        if len(late):
            line = lines[int(np.searchsorted(np.cumsum(counts), late[0], side="right"))]
            index = table[late[0], column] + 1
            raise FileError(f"line {line}: {what} index {index} is out of range, {count} are defined")
    v_pos = np.array(positions, dtype=np.float64).reshape(-1, 3)
    if not uv or (table[:, 1] == NO_UV).all():
        return Polygons(v_pos, table[:, 0], counts)
    if (table[:, 1] == NO_UV).any():
        # A row of NaN is added for corners without uv. NO_UV is −1, which is the index of this last row.
        uv.append([np.nan, np.nan])
    return Polygons(v_pos, table[:, 0], counts, np.array(uv) * [1, -1] + [0, 1], table[:, 1])


def _statements(
    text: bytes, names: tuple[str, ...] = ("v", "vt", "f", "fo")
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, words) of each statement with one of the names.

    Comments are removed and continued lines are joined.
    """
    if b"\0" in text:
        raise FileError("cannot be read as obj (binary data)")
    pending, first = [], 0
    for number, line in enumerate(text.decode("utf-8", errors="replace").splitlines(), start=1):
        line = line.split("#", 1)[0].rstrip()
        first = first if pending else number
        if line.endswith("\\"):
            pending.append(line[:-1])
            continue
        words = " ".join([*pending, line]).split()
        pending = []
        if words and words[0] in names:
            yield first, words


def _numbers(words: list[str], least: int, most: int) -> list[float]:
    """Return `most` numbers of a statement, which must have at least `least`. Missing numbers are 0."""
    if len(words) <= least:
        raise ValueError(f"'{words[0]}' needs {least} numbers, it has {len(words) - 1}")
    try:
        values = [float(word) for word in words[1 : most + 1]]
    except ValueError:
        hint = "; write a decimal point, not a comma" if re.search(r"\d,\d", " ".join(words)) else ""
        raise ValueError(f"'{' '.join(words)[:80]}' holds something that is not a number{hint}") from None
    return values + [0.0] * (most - len(values))


def _face(words: list[str], positions: int, uvs: int) -> list[tuple[int, int]]:
    """Return the indices (position, uv) of each corner. A positive index may refer to a statement that comes
    after the face.
    """
    if len(words) < 4:
        raise ValueError(f"a face needs 3 corners or more, it has {len(words) - 1}")
    return [_corner(word, positions, uvs) for word in words[1:]]


def _corner(word: str, positions: int, uvs: int) -> tuple[int, int]:
    parts = word.split("/")
    position = _index(parts[0], positions, "vertex")
    return position, _index(parts[1], uvs, "uv") if len(parts) > 1 and parts[1] else NO_UV


def _index(word: str, count: int, what: str) -> int:
    """Return the zero-based index of an element, given its index in the file.

    Indices in OBJ start at 1. Negative indices count backward from the latest element.
    """
    try:
        index = int(word)
    except ValueError:
        raise ValueError(f"'{word[:80]}' is not a {what} index") from None
    zero_based = index - 1 if index > 0 else count + index
    if index == 0 or zero_based < 0 or zero_based >= 2**62:
        raise ValueError(f"{what} index {word[:80]} is out of range, {count} are defined so far")
    return zero_based
