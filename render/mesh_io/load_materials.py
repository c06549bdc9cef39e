"""The materials of a mesh file, in the order of `Structure`."""

from pathlib import Path

from render.mesh_io.read_gltf import gltf_files, read_gltf_materials
from render.mesh_io.read_mtl import obj_files, read_mtl_materials
from render.mesh_io.surface_material import DEFAULT_MATERIAL, SurfaceMaterial
from render.read_errors import reading

GLTF, OBJ = (".glb", ".gltf"), (".obj",)
WITH_MATERIALS = (*GLTF, *OBJ)


def load_materials(path: str | Path, pictures: bool = True) -> tuple[SurfaceMaterial, ...]:
    """Read the materials of a mesh file. If the format has no materials, the only element of the result is
    `DEFAULT_MATERIAL`.

    pictures: whether to read pictures. If `pictures` is False, only names and settings are read.

    Raises:
        ValueError, OSError: if a material cannot be read. The message contains the file, the material and the
        fault.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WITH_MATERIALS:
        return (DEFAULT_MATERIAL,)
    with reading(path, "mesh file", suffix[1:]):
        if suffix in GLTF:
            return read_gltf_materials(path, pictures)
        return read_mtl_materials(path, pictures)


def appearance_files(path: str | Path) -> list[Path]:
    """Return the files beside a mesh file that contain its materials, pictures and buffers."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WITH_MATERIALS:
        return []
    with reading(path, "mesh file", suffix[1:]):
        return gltf_files(path) if suffix in GLTF else obj_files(path)
