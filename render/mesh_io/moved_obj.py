"""Write a copy of an OBJ file with moved vertices, and copy its materials.

Only the numbers of `v` and `vn` statements and the normal indices of faces change. Materials, groups, texture
coordinates and the order of all statements are kept.
"""

import logging
import shutil
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from render.mesh_io.moved_normals import corner_normals
from render.mesh_io.polygons import triangulate
from render.mesh_io.read_obj import read_obj

logger = logging.getLogger(__name__)

# The statements of a material library that contain the name of a picture. The names of other such statements
# begin with map_.
PICTURES = ("bump", "norm", "disp", "decal", "refl")


def moved_obj(
    source: Path,
    welded: Int[np.ndarray, " N"],
    v_pos: Float[np.ndarray, "V 3"],
    shift: np.ndarray,
    digits: int,
) -> bytes:
    """Return the content of an OBJ file with moved vertices.

    welded: the row in v_pos and shift of each `v` statement. v_pos, shift: the positions and their
    displacements. digits: the number of significant digits of a position.
    """
    lines = _lines(source.read_bytes())
    normals, number = _corner_normals(source, lines, welded, v_pos + shift)
    moves = shift[welded]
    out, vertex, corner = [], 0, 0
    pending = [f"vn {x:.6g} {y:.6g} {z:.6g}" for x, y, z in normals.tolist()]
    for line in lines:
        words = line.split("#", 1)[0].split()
        kind = words[0] if words else ""
        if kind == "v":
            if moves[vertex].any():
                values = (float(word) + move for word, move in zip(words[1:4], moves[vertex], strict=True))
                line = " ".join(["v", *(f"{value:.{digits}g}" for value in values), *words[4:]])
            vertex += 1
        elif kind == "vn":
            continue
        elif kind in ("f", "fo"):
            # All normals are written before the first face, because some readers require a normal before the
            # faces that use it.
            out, pending = out + pending, []
            corners = number[corner : corner + len(words) - 1].tolist()
            corner += len(corners)
            line = " ".join([kind, *map(_with_normal, words[1:], corners)])
        out.append(line)
    return "\n".join([*out, ""]).encode("utf-8", "surrogateescape")


def copy_materials(source: Path, folder: Path) -> None:
    """Copy the material libraries of an OBJ file and their pictures, with the same relative paths.

    Files outside of the folder of the OBJ file are not copied, and a warning is logged.
    """
    for line in _lines(source.read_bytes()):
        keyword, _, names = line.strip().partition(" ")
        if keyword != "mtllib":
            continue
        for library in _existing(source.parent, names.split()):
            _copy(source.parent, library, folder)
            text = (source.parent / library).read_text(encoding="utf-8", errors="surrogateescape")
            for statement in text.splitlines():
                words = statement.split()
                if words and (words[0].lower().startswith("map_") or words[0].lower() in PICTURES):
                    for picture in _existing(source.parent, words[1:]):
                        _copy(source.parent, picture, folder)


def _lines(content: bytes) -> list[str]:
    """Return the lines of an OBJ file. Continued lines are joined."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        content = content.decode("utf-16").encode()
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    return text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines()


def _corner_normals(
    source: Path, lines: list[str], welded: Int[np.ndarray, " N"], moved: Float[np.ndarray, "V 3"]
) -> tuple[Float[np.ndarray, "G 3"], Int[np.ndarray, " C"]]:
    """Return the new normals and the normal index of each polygon corner. The index is −1 for a corner
    without normal.
    """
    table, indices = _normal_indices(lines)
    none = np.zeros((0, 3)), np.full(len(indices), -1)
    if not len(table) or (indices < 0).all():
        return none
    polygons = read_obj(source)
    triangles = triangulate(polygons)
    old = np.concatenate([table, np.zeros((1, 3))])[indices]
    normals, number = corner_normals(moved, welded[polygons.corners[triangles]], old[triangles])
    found = none[1]
    found[triangles.reshape(-1)] = number.reshape(-1)
    return normals, np.where(indices < 0, -1, found)


def _normal_indices(lines: list[str]) -> tuple[Float[np.ndarray, "M 3"], Int[np.ndarray, " C"]]:
    """Return the normals of the `vn` statements and the normal index of each corner.

    The index is −1 if it is missing in the file or out of range.
    """
    table, indices = [], []
    for line in lines:
        words = line.split("#", 1)[0].split()
        if words and words[0] == "vn":
            table.append([float(word) for word in words[1:4]])
        elif words and words[0] in ("f", "fo"):
            for word in words[1:]:
                parts = word.split("/")
                index = int(parts[2]) if len(parts) == 3 and parts[2] else 0
                indices.append(index - 1 if index > 0 else len(table) + index if index < 0 else -1)
    found = np.array(indices, dtype=np.int64)
    return np.array(table, dtype=np.float64).reshape(-1, 3), np.where(found < len(table), found, -1)


def _with_normal(word: str, normal: int) -> str:
    """Return the text of a face corner with another normal index, or without one if `normal` is −1."""
    position, uv = (word.split("/") + [""])[:2]
    if normal < 0:
        return f"{position}/{uv}" if uv else position
    return f"{position}/{uv}/{normal + 1}"


def _existing(folder: Path, words: list[str]) -> list[str]:
    """Return the names of the existing files in a statement.

    Names may contain spaces. If the last words of the statement form the name of a file, the longest such
    name is returned. Otherwise, all single words that are names of files are returned.
    """
    for first in range(len(words)):
        name = " ".join(words[first:])
        if (folder / name).is_file():
            return [name]
    return [word for word in words if (folder / word).is_file()]


def _copy(source: Path, name: str, folder: Path) -> None:
    inside = (source / name).resolve().is_relative_to(source.resolve())
    if Path(name).is_absolute() or ".." in Path(name).parts or not inside:
        logger.warning("mesh.obj uses %s, which is outside of the mesh's folder and is not copied", name)
        return
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / name, target)
