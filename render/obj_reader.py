"""A small, strict reader of Wavefront OBJ: v, vt and f; every other statement is skipped.

trimesh splits positions along uv seams and forgives broken indices; here both index sets are kept and a fault
is reported with its line.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int


def read_obj(
    path: Path,
) -> tuple[
    Float[np.ndarray, "V 3"],
    Int[np.ndarray, "F 3"],
    Float[np.ndarray, "U 2"] | None,
    Int[np.ndarray, "F 3"] | None,
]:
    """Positions, triangles, uv with v downwards, and uv triangles (None, None unless every face has uv).

    Polygons are cut into a fan from their first corner, which suits convex ones. Raises ValueError naming the
    file, the line and what is wrong with it.
    """
    positions: list[list[float]] = []
    uv: list[list[float]] = []
    corners: list[tuple[int, int]] = []
    for number, words in _statements(path):
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


def _statements(path: Path):
    """(line number, words) of each v, vt and f statement, without comments, continued lines joined."""
    text = path.read_bytes()
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
