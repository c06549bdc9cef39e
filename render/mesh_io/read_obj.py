"""A small, strict reader of Wavefront OBJ: v, vt and f; every other statement is skipped.

trimesh splits positions along uv seams and forgives broken indices; here both index sets are kept and a fault
is reported with its line. Plain files, as programs write them, are read in bulk; all others, and those with a
fault, line by line.
"""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

Arrays = tuple[
    Float[np.ndarray, "V 3"],
    Int[np.ndarray, "F 3"],
    Float[np.ndarray, "U 2"] | None,
    Int[np.ndarray, "F 3"] | None,
]

# How a corner is written: v, v/vt, v//vn or v/vt/vn; how many numbers that is; whether the second is a uv.
CORNERS = (
    (rb"\d+", 1, False),
    (rb"\d+/\d+", 2, True),
    (rb"\d+//\d+", 2, False),
    (rb"\d+/\d+/\d+", 3, True),
)
# A statement that does not begin its line, a tab behind its name, a continued line, a rare end of line, a
# control character: not plain.
NOT_PLAIN = re.compile(rb"(?m)^[ \t]+(?:v|vt|f)[ \t]|^(?:v|vt|f)\t|[\\\r\x00\x0b\x0c\x1c-\x1e\x85]|\xe2\x80")


def read_obj(path: Path) -> Arrays:
    """Positions, triangles, uv with v downwards, and uv triangles (None, None unless every face has uv).

    Polygons are cut into a fan from their first corner, which suits convex ones. Raises ValueError naming the
    file, the line and what is wrong with it.
    """
    text = path.read_bytes()
    return _in_bulk(text.replace(b"\r\n", b"\n")) or _line_by_line(path, text)


def _in_bulk(text: bytes) -> Arrays | None:
    """A file of triangles behind all their vertices, every corner written in the same way; None: not that."""
    first = text.find(b"\nf ")
    if max(text.rfind(b"\nv "), text.rfind(b"\nvt ")) > first or NOT_PLAIN.search(text):
        return None
    lines = text.split(b"\n")
    corners = _corners([line for line in lines if line.startswith(b"f ")])
    try:
        v_pos, uv = _table(lines, b"v ", 3), _table(lines, b"vt ", 2)
    except ValueError:
        return None
    if corners is None or not _within(corners[:, :, 0], len(v_pos)):
        return None
    if corners.shape[2] == 1:
        return v_pos, corners[:, :, 0], None, None
    if not _within(corners[:, :, 1], len(uv)):
        return None
    return v_pos, corners[:, :, 0], uv * [1, -1] + [0, 1], corners[:, :, 1]


def _corners(lines: list[bytes]) -> Int[np.ndarray, "F 3 K"] | None:
    """Zero-based (position) or (position, uv) of each corner of these faces; None: they are not all alike."""
    text = b"\n".join(lines)
    for corner, numbers, has_uv in CORNERS:
        face = rb"f +" + rb" +".join([corner] * 3) + rb" *"
        if re.fullmatch(rb"(?:" + face + rb"\n)*+" + face, text):
            found = np.fromstring(text.replace(b"f", b" ").replace(b"/", b" "), dtype=np.int64, sep=" ")
            return found.reshape(-1, 3, numbers)[:, :, : 2 if has_uv else 1] - 1
    return None


def _table(lines: list[bytes], name: bytes, columns: int) -> Float[np.ndarray, "N K"]:
    """The first numbers of all statements of a name. Raises ValueError where one has fewer, or others."""
    chosen = [line[len(name) :] for line in lines if line.startswith(name)]
    if not chosen:
        return np.zeros((0, columns))
    return np.loadtxt(chosen, comments=None, usecols=range(columns), ndmin=2)


def _within(indices: Int[np.ndarray, "F 3"], count: int) -> bool:
    return bool((indices >= 0).all() and (indices < count).all())


def _line_by_line(path: Path, text: bytes) -> Arrays:
    positions: list[list[float]] = []
    uv: list[list[float]] = []
    corners: list[tuple[int, int]] = []
    for number, words in _statements(path, text):
        try:
            if words[0] == "v":
                positions.append(_numbers(words, 3))
            elif words[0] == "vt":
                uv.append(_numbers(words, 2))
            elif words[0] == "f":
                corners += _triangles(words, len(positions), len(uv))
        except ValueError as error:
            raise ValueError(f"mesh file {path}, line {number}: {error}") from error
    table = np.array(corners, dtype=np.int64).reshape(-1, 3, 2)
    v_pos = np.array(positions, dtype=np.float64).reshape(-1, 3)
    faces, uv_faces = table[:, :, 0], table[:, :, 1]
    if not uv or (uv_faces < 0).any():
        return v_pos, faces, None, None
    return v_pos, faces, np.array(uv) * [1, -1] + [0, 1], uv_faces


def _statements(path: Path, text: bytes):
    """(line number, words) of each v, vt and f statement, without comments, continued lines joined."""
    if b"\0" in text:
        raise ValueError(f"mesh file {path}: cannot be read as obj (binary data)")
    pending, first = "", 0
    for number, line in enumerate(text.decode("utf-8", errors="replace").splitlines(), start=1):
        line = line.split("#", 1)[0].rstrip()
        first = first if pending else number
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        words = (pending + line).split()
        pending = ""
        if words and words[0] in ("v", "vt", "f"):
            yield first, words


def _numbers(words: list[str], count: int) -> list[float]:
    if len(words) <= count:
        raise ValueError(f"'{words[0]}' needs {count} numbers, it has {len(words) - 1}")
    try:
        return [float(word) for word in words[1 : count + 1]]
    except ValueError:
        raise ValueError(f"'{' '.join(words)}' holds something that is not a number") from None


def _triangles(words: list[str], positions: int, uvs: int) -> list[tuple[int, int]]:
    """(position, uv) indices of a face's triangles, three after another; uv −1 where the face names none."""
    if len(words) < 4:
        raise ValueError(f"a face needs 3 corners or more, it has {len(words) - 1}")
    ring = [_corner(word, positions, uvs) for word in words[1:]]
    fan = zip(ring[1:-1], ring[2:], strict=True)
    return [corner for second, third in fan for corner in (ring[0], second, third)]


def _corner(word: str, positions: int, uvs: int) -> tuple[int, int]:
    parts = word.split("/")
    position = _index(parts[0], positions, "vertex")
    return position, _index(parts[1], uvs, "uv") if len(parts) > 1 and parts[1] else -1


def _index(word: str, count: int, what: str) -> int:
    """Zero-based index; OBJ counts from 1, and back from the newest with negative numbers."""
    try:
        index = int(word)
    except ValueError:
        raise ValueError(f"'{word}' is not a {what} index") from None
    zero_based = index - 1 if index > 0 else count + index
    if index == 0 or not 0 <= zero_based < count:
        raise ValueError(f"{what} index {index} is out of range, {count} are defined so far")
    return zero_based
