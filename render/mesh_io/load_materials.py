"""The materials of a mesh file, in the order of `Structure`."""

from pathlib import Path

from render.mesh_io.read_gltf import gltf_files, read_gltf_materials
from render.mesh_io.read_mtl import obj_files, read_mtl_materials
from render.mesh_io.surface_material import DEFAULT_MATERIAL, SurfaceMaterial
from render.read_errors import reading

GLTF, OBJ = (".glb", ".gltf"), (".obj",)
WITH_MATERIALS = (*GLTF, *OBJ)


def load_materials(path: str | Path, pictures: bool = True) -> tuple[SurfaceMaterial, ...]:
    """The materials of a mesh file: `DEFAULT_MATERIAL` alone for a format without materials.

    pictures: False reads names and settings only.

    Raises:
        ValueError, OSError: naming the file, the material and the fault.
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
    """The files beside a mesh file that its materials and buffers are in."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WITH_MATERIALS:
        return []
    with reading(path, "mesh file", suffix[1:]):
        return gltf_files(path) if suffix in GLTF else obj_files(path)
