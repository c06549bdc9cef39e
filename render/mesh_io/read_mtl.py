"""Read the materials of an OBJ file's MTL libraries as `SurfaceMaterial`.

These statements are read: Kd and map_Kd; Pr, Pm, map_Pr and map_Pm of the PBR extension; norm; and bump if
the picture of the statement is a normal map. As in Blender, a picture of the base colour replaces Kd, and the
roughness is 1 − √(Ns / 1000) if Pr is missing. Names of pictures are relative to the MTL file.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from render.image_io.texture import decode_texture
from render.mesh_io.read_obj import material_names, read_text
from render.mesh_io.surface_material import DEFAULT_MATERIAL, SurfaceMaterial
from render.read_errors import FileError

logger = logging.getLogger(__name__)

# The options of a map statement and the maximum number of values of each.
OPTIONS = {
    "-blendu": 1,
    "-blendv": 1,
    "-boost": 1,
    "-mm": 2,
    "-o": 3,
    "-s": 3,
    "-t": 3,
    "-texres": 1,
    "-clamp": 1,
    "-bm": 1,
    "-imfchan": 1,
    "-type": 1,
}
MAPS = ("map_kd", "map_pr", "map_pm", "norm", "bump", "map_bump")
# A picture is a normal map if its mean blue value exceeds its mean red value by more than this threshold. In
# a height map, which is grey, both mean values are equal.
BLUE = 16


def read_mtl_materials(path: Path, pictures: bool = True) -> tuple[SurfaceMaterial, ...]:
    """Read the materials that the faces of an OBJ file use, in the order of their first use.

    Materials that no library defines and faces without a material have the default appearance. pictures:
    whether to read appearances. If `pictures` is False, only the names are read.

    Raises:
        FileError: if a picture is missing or cannot be read, or a value is not a number.
    """
    names = material_names(path)
    if not pictures:
        return tuple(SurfaceMaterial(name or DEFAULT_MATERIAL.name) for name in names)
    known = _libraries(path)
    if missing := [name for name in names if name and name not in known]:
        logger.warning("mesh file %s: no MTL file defines the materials %s", path, ", ".join(missing))
    return tuple(
        _material(name, *known[name])
        if name in known
        else replace(DEFAULT_MATERIAL, name=name or DEFAULT_MATERIAL.name)
        for name in names
    )


def obj_files(path: Path) -> list[Path]:
    """Return the existing MTL libraries of an OBJ file, and the picture files that they name."""
    used = {file: None for file in _library_paths(path)}
    for folder, entry in _libraries(path).values():
        for key in MAPS:
            if key in entry:
                used[_picture_path(folder, entry[key])] = None
    return list(used)


def _library_paths(path: Path) -> list[Path]:
    found = []
    for line in re.findall(rb"(?m)^[ \t]*mtllib[ \t]+(.+?)[ \t\r]*$", read_text(path)):
        name = line.decode("utf-8", errors="replace")
        whole = [path.parent / name]
        files = whole if whole[0].is_file() else [path.parent / word for word in name.split()]
        found += [_inside(file, path.parent) for file in files if file.is_file()]
        for file in files:
            if not file.is_file():
                logger.warning("mesh file %s: its material library %s does not exist", path, file.name)
    return found


def _inside(file: Path, folder: Path) -> Path:
    """Return `file`. Raises FileError if `file` lies outside of `folder`."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise FileError(f"its file '{file.name}' lies outside of the mesh's folder; put it beside the mesh")
    return file


def _libraries(path: Path) -> dict[str, tuple[Path, Mapping[str, str]]]:
    """Return a dict from material names to (folder of the library, statements with keys in lower case)."""
    found: dict[str, tuple[Path, dict[str, str]]] = {}
    for file in _library_paths(path):
        entry: dict[str, str] = {}
        for line in read_text(file).decode("utf-8", errors="replace").splitlines():
            key, _, value = " ".join(line.split("#", 1)[0].split()).partition(" ")
            if key == "newmtl":
                entry = {}
                found.setdefault(value, (file.parent, entry))
            elif key:
                entry[key.lower()] = value
    return found


def _material(name: str, folder: Path, entry: Mapping[str, str]) -> SurfaceMaterial:
    kd = _picture(name, folder, entry, "map_kd")
    colour = _numbers(name, entry, "kd", 3) or (0.8, 0.8, 0.8)
    roughness, metallic = (_picture(name, folder, entry, key) for key in ("map_pr", "map_pm"))
    shininess = (_numbers(name, entry, "ns", 1) or (0.0,))[0]
    factors = {
        "roughness": (_numbers(name, entry, "pr", 1) or (1 - min(max(shininess, 0) / 1000, 1) ** 0.5,))[0],
        "metallic": (_numbers(name, entry, "pm", 1) or (0.0,))[0],
    }
    # If there is a picture, its values replace the number in the file, so the factor is 1.
    factors["roughness"] = 1.0 if roughness is not None else factors["roughness"]
    factors["metallic"] = 1.0 if metallic is not None else factors["metallic"]
    return SurfaceMaterial(
        name,
        kd=kd,
        kd_factor=(1.0, 1.0, 1.0, 1.0) if kd is not None else (*colour, 1.0),
        roughness_metallic=_pair(name, roughness, metallic),
        normal=_normal(name, folder, entry),
        **factors,
    )


def _pair(
    name: str, roughness: np.ndarray | None, metallic: np.ndarray | None
) -> UInt8[np.ndarray, "H W 2"] | None:
    """Combine two grey pictures as the channels of one picture. A missing picture is replaced by white."""
    given = [picture for picture in (roughness, metallic) if picture is not None]
    if not given:
        return None
    if any(picture.shape[:2] != given[0].shape[:2] for picture in given):
        raise FileError(f"material {name}: map_Pr and map_Pm have different sizes; save both in one size")
    white = np.full(given[0].shape[:2], 255, np.uint8)
    return np.stack([white if one is None else one[..., 0] for one in (roughness, metallic)], -1)


def _normal(name: str, folder: Path, entry: Mapping[str, str]) -> UInt8[np.ndarray, "H W 3"] | None:
    for key in ("norm", "bump", "map_bump"):
        picture = _picture(name, folder, entry, key)
        if picture is None:
            continue
        red, _, blue = picture[..., :3].reshape(-1, 3).mean(0)
        if key == "norm" or blue > red + BLUE:
            return np.ascontiguousarray(picture[..., :3])
        logger.warning("material %s: the height map of %s is not used; norm names a normal map", name, key)
    return None


def _picture(
    name: str, folder: Path, entry: Mapping[str, str], key: str
) -> UInt8[np.ndarray, "H W C"] | None:
    if key not in entry:
        return None
    for option in ("-o", "-s", "-t"):
        if option in entry[key].split():
            logger.warning("material %s: the option %s of %s is not used", name, option, key)
    file = _picture_path(folder, entry[key])
    if not file.is_file():
        raise FileError(f"material {name}: {key} {file.name} does not exist; copy that file, too")
    try:
        return decode_texture(file.read_bytes())
    except FileError as error:
        raise FileError(f"material {name}: {key} {file.name}: {error}") from None


def _picture_path(folder: Path, value: str) -> Path:
    """Return the picture file of a map statement. The file name follows the options of the statement.
    Backslashes also separate folders.
    """
    words = value.split()
    while words and words[0] in OPTIONS:
        count, words = OPTIONS[words[0]], words[1:]
        while words and count and (count == 1 or _is_number(words[0])):
            count, words = count - 1, words[1:]
    file = folder / " ".join(words).replace("\\", "/")
    if not file.is_file() and (folder / file.name).is_file():
        # Some programs write absolute paths, which are valid only on the machine that wrote the file. A
        # picture with this name beside the library is used instead.
        file = folder / file.name
    return _inside(file, folder)


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", word) is not None


def _numbers(name: str, entry: Mapping[str, str], key: str, count: int) -> tuple[float, ...] | None:
    if key not in entry:
        return None
    words = entry[key].split()
    if not words or not all(_is_number(word) for word in words[:count]):
        raise FileError(f"material {name}: '{key} {entry[key][:40]}' is no number")
    values = [float(word) for word in words[:count]]
    return tuple(values + values[-1:] * (count - len(values)))
