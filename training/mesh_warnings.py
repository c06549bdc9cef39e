"""Warnings about the user's mesh: a wrong up axis, or textures that are not used."""

import json
import logging
import re
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from configs.run import MESH_FILE
from render.mesh_io.load_materials import WITH_MATERIALS

logger = logging.getLogger(__name__)

# Thickness of the slab of vertices at each end of an axis, relative to the length of the mesh along the axis.
SLAB = 0.03
# STANDING: minimum difference between base area and top area along an up axis, relative to the cross-section.
# ADVANTAGE: the difference along z must exceed the difference along y by at least this value.
STANDING, ADVANTAGE = 0.25, 0.25
GROUND, CENTRED = 0.01, 0.05
DIRECTIONS = 64


def warn_about_mesh(
    path: str,
    v_pos: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    fix: str,
    textures_used: bool = False,
) -> None:
    """Log a warning if the mesh looks Z-up, and a warning if its textures and materials are not used.

    Meshes that this program has written are not checked. path: the file, for messages and to read its
    materials. v_pos: positions after the rotation that the config specifies, if any. fix: text of the message
    that tells how to correct a Z-up mesh. textures_used: if true, there is no warning about textures.
    """
    warn_about_axes(path, v_pos, faces, fix)
    if not textures_used and not _is_own(path) and (unused := unused_appearance(path)):
        with_materials = Path(path).suffix.lower() in WITH_MATERIALS
        hint = (
            "a painting with --init_textures true starts from them" if with_materials else "only the shape is"
        )
        logger.warning("base_mesh %s: the run does not use %s of the file; %s", path, unused, hint)


def warn_about_axes(path: str, v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], fix: str) -> None:
    """Log a warning if the mesh looks Z-up. See `warn_about_mesh` for the arguments."""
    if not _is_own(path) and looks_z_up(v_pos, faces):
        logger.warning("base_mesh %s looks Z-up, and the program takes +y as up: %s", path, fix)


def _is_own(path: str) -> bool:
    """Return whether this program has written the mesh file."""
    return Path(path).parent.name == MESH_FILE.parent.name


def looks_z_up(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> bool:
    """Return whether the lowest z, and not the lowest y, appears to be the base of the mesh.

    The base of an object is usually larger than its top. Another indication of Z-up is that the lowest z is 0
    and y is centred at 0, because models of Z-up programs usually stand on the ground plane.
    """
    points = v_pos[faces.unique()].double().cpu()
    low, high = points.amin(0), points.amax(0)
    size = high - low
    if float(size.min()) == 0.0:
        # A flat mesh has no base.
        return False
    unit = (points - low) / size
    y_standing, z_standing = (_end_area(unit, axis) - _end_area(1 - unit, axis) for axis in (1, 2))
    if z_standing > STANDING and z_standing > y_standing + ADVANTAGE:
        return True
    y_grounded, z_grounded = (abs(float(low[axis])) < GROUND * float(size.norm()) for axis in (1, 2))
    return z_grounded and not y_grounded and abs(float(low[1] + high[1])) < 2 * CENTRED * float(size[1])


def _end_area(unit: Float[Tensor, "N 3"], axis: int) -> float:
    """Project the points at the low end of an axis along the axis, and return the area of their convex hull.

    unit: points in [0, 1]^3. Only the extreme points in DIRECTIONS directions are used for the hull.
    """
    others = [other for other in range(3) if other != axis]
    base = unit[unit[:, axis] <= SLAB][:, others]
    angle = torch.arange(DIRECTIONS, dtype=base.dtype) * (2 * torch.pi / DIRECTIONS)
    extreme = base[(base @ torch.stack([angle.cos(), angle.sin()])).argmax(0)]
    x, y = extreme.T
    return 0.5 * abs(float((x * y.roll(-1) - y * x.roll(-1)).sum()))


def unused_appearance(path: str) -> str:
    """Describe materials and textures in a mesh file: "2 materials, 1 texture", or "" if there are none."""
    readers = {".obj": _in_obj, ".glb": _in_gltf, ".gltf": _in_gltf, ".ply": _in_ply}
    reader = readers.get(Path(path).suffix.lower())
    try:
        return ", ".join(reader(Path(path))) if reader else ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # Ignore the error, because the result is only used in a warning and the mesh has already been read.
        return ""


def _counted(noun: str, count: int) -> list[str]:
    return [f"{count} {noun}{'s' * (count > 1)}"] if count else []


def _in_obj(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        libraries = [line.split(None, 1)[1].strip() for line in file if line.startswith("mtllib ")]
    materials, textures = set(), set()
    for library in (path.parent / name for name in libraries):
        if not library.is_file():
            continue
        for line in library.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.strip().partition(" ")
            if key == "newmtl":
                materials.add(value)
            elif key.lower().startswith("map_") or key.lower() in ("bump", "norm"):
                textures.add(value.split()[-1])
    return _counted("material", len(materials)) + _counted("texture", len(textures))


def _in_gltf(path: Path) -> list[str]:
    content = path.read_bytes()
    if content[:4] == b"glTF":
        # The JSON begins at byte 20, after the header (12 bytes) and the length and type of the JSON chunk.
        content = content[20 : 20 + int.from_bytes(content[12:16], "little")]
    document = json.loads(content)
    counts = {noun: len(document.get(f"{noun}s", ())) for noun in ("material", "texture")}
    return [text for noun, count in counts.items() for text in _counted(noun, count)]


def _in_ply(path: Path) -> list[str]:
    header = path.read_bytes().partition(b"end_header")[0].decode("ascii", errors="replace").lower()
    colours = re.search(r"^property \w+ red\s*$", header, re.M)
    return ["vertex colours"] * bool(colours) + _counted("texture", header.count("comment texturefile"))
