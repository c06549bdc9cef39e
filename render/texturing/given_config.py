"""Config section for the textures of a mesh file, and the functions that read the materials and the paint
mask.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from render.image_io.texture import decode_texture
from render.mesh_io.load_materials import load_materials
from render.mesh_io.surface_material import SurfaceMaterial
from render.read_errors import FileError, reading
from render.texturing.given import PaintMask

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tga", ".bmp", ".tif", ".tiff")


def _listed(value: object) -> object:
    """Convert a single string or a list to a tuple. JSON has lists, but strict validation needs tuples."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class GivenConfig:
    """Config keys for the use of the textures of base_mesh."""

    init_textures: bool = Field(
        False,
        description="start from the textures of base_mesh",
    )
    paint_mask: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        (),
        description="where base_mesh is painted: a grey picture over its uv, white where it is painted, or "
        "names of its materials; its own textures are kept elsewhere; an empty list paints all",
        json_schema_extra={"allowed": "a picture file, or a list of names of materials"},
    )

    @property
    def used(self) -> bool:
        """Return whether the textures of base_mesh are read."""
        return self.init_textures or bool(self.paint_mask)

    @property
    def mask_file(self) -> str | None:
        """Return the picture file of paint_mask, or None if paint_mask lists materials or is empty."""
        single = len(self.paint_mask) == 1 and self.paint_mask[0].lower().endswith(PICTURES)
        return self.paint_mask[0] if single else None


def read_given(config: GivenConfig, mesh: str | Path) -> tuple[tuple[SurfaceMaterial, ...], PaintMask | None]:
    """Return the materials of a mesh file (with their pictures if the config uses them) and the paint mask.

    Raises:
        ValueError, OSError: if a file or a key is faulty. The one-line message contains the file or the key,
        the fault and the fix.
    """
    materials = read_materials(config, mesh)
    return materials, read_mask(config, materials, mesh)


def read_materials(config: GivenConfig, mesh: str | Path) -> tuple[SurfaceMaterial, ...]:
    """Return the materials of a mesh file, with their pictures if the config uses them.

    Raises:
        ValueError, OSError: if the materials cannot be read, or if the config uses them and the file has
            none. The message contains the file and the fault.
    """
    materials = load_materials(mesh, pictures=config.used)
    if config.used and all(material.is_default for material in materials):
        key = "init_textures = true" if config.init_textures else f"paint_mask = {list(config.paint_mask)}"
        raise ValueError(
            f"{key}: mesh file {mesh} has no materials; export it with them, or leave this key out"
        )
    return materials


def read_mask(
    config: GivenConfig, materials: Sequence[SurfaceMaterial], mesh: str | Path
) -> PaintMask | None:
    """Return the paint mask of a config, or None if it has no mask.

    Raises:
        ValueError, OSError: if the picture cannot be read, or if paint_mask contains a name that no material
            of the mesh has.
    """
    if not config.paint_mask:
        return None
    if (picture := config.mask_file) is None:
        known = list(dict.fromkeys(material.name for material in materials))
        if missing := [name for name in config.paint_mask if name not in known]:
            raise ValueError(
                f"paint_mask = {missing[0]!r}: the materials of base_mesh {mesh} are {', '.join(known)}; "
                f"name some of them, or one picture file ({', '.join(PICTURES)})"
            )
        return PaintMask(materials=frozenset(config.paint_mask))
    with reading(picture, "paint_mask", "a picture"):
        pixels = decode_texture(Path(picture).read_bytes())[..., :3]
        if (pixels != pixels[..., :1]).any():
            raise FileError("it has colours; save it as a grey picture, white where the mesh is painted")
        return PaintMask(picture=np.ascontiguousarray(pixels[..., 0]))
