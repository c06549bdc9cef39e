"""Write Wavefront OBJ of a mesh with parts. Each node is an object, and all materials are kept."""

import hashlib
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from render.image_io.atomic import write_bytes, write_text
from render.image_io.image import encode_pngs
from render.mesh_io.asset import Asset
from render.mesh_io.surface_material import SurfaceMaterial
from render.mesh_io.write_glb_parts import material_count
from render.mesh_io.write_obj import (
    KD_FILE,
    KS_FILE,
    METALLIC_FILE,
    NORMAL_FILE,
    ROUGHNESS_FILE,
    corner_rows,
    vertex_rows,
)

MAPS = {
    KD_FILE: ("map_Kd",),
    KS_FILE: ("map_Ks",),
    ROUGHNESS_FILE: ("map_Pr",),
    METALLIC_FILE: ("map_Pm",),
    NORMAL_FILE: ("bump", "norm"),
}


def write_obj_parts(folder: Path | str, asset: Asset) -> dict[int, dict[str, str]]:
    """Write mesh.obj, mesh.mtl and the pictures of all materials to `folder`.

    Positions are in file coordinates. With several materials, the file name of a picture contains the index
    and the name of the material (texture_kd_0_wood.png). Equal pictures are written only once. mesh.obj is
    written last. Returns, for each material, a dict from names in MAPS to files.
    """
    folder, count = Path(folder), material_count(asset)
    files: dict[str, tuple[str, np.ndarray]] = {}
    used: dict[int, dict[str, str]] = {}
    for number, material in enumerate(asset.materials[:count]):
        used[number] = {}
        for name, pixels in material_pictures(material).items():
            digest = hashlib.sha256(f"{name} {pixels.shape}".encode() + pixels.tobytes()).hexdigest()
            file = name if count == 1 else _numbered(name, number, material.name)
            used[number][name] = files.setdefault(digest, (file, pixels))[0]
    pictures = [pixels for _, pixels in files.values()]
    for (file, _), content in zip(files.values(), encode_pngs(pictures), strict=True):
        write_bytes(folder / file, content)
    library = [
        _material(material, name, used[number])
        for number, (material, name) in enumerate(zip(asset.materials, obj_names(asset), strict=False))
        if number < count
    ]
    write_text(folder / "mesh.mtl", "\n".join(library))
    write_text(folder / "mesh.obj", _geometry(asset))
    return used


def obj_names(asset: Asset) -> list[str]:
    """Return the names of the materials without line breaks. If a name is repeated, the index is appended."""
    names: list[str] = []
    for number, material in enumerate(asset.materials):
        name = " ".join(material.name.split()) or f"material_{number}"
        names.append(f"{name}_{number}" if name in names else name)
    return names


def material_pictures(material: SurfaceMaterial) -> dict[str, UInt8[np.ndarray, "H W C"]]:
    """Return a dict from names in MAPS to the pictures of a material, without alpha."""
    found = {}
    if material.kd is not None:
        found[KD_FILE] = material.kd[..., :3]
    if (packed := material.roughness_metallic) is not None:
        occlusion = material.occlusion
        same = occlusion is not None and occlusion.shape[:2] == packed.shape[:2]
        dark = 255 - occlusion if same else np.zeros_like(packed[..., :1])
        found[KS_FILE] = np.concatenate([dark, packed], -1)
        found[ROUGHNESS_FILE], found[METALLIC_FILE] = packed[..., :1], packed[..., 1:]
    if material.normal is not None:
        found[NORMAL_FILE] = material.normal
    return found


def _numbered(file: str, number: int, name: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40]
    return f"{Path(file).stem}_{number}{f'_{slug}' if slug else ''}.png"


def _material(material: SurfaceMaterial, name: str, files: dict[str, str]) -> str:
    red, green, blue, alpha = material.kd_factor
    lines = [
        f"newmtl {name}",
        "Ka 0 0 0",
        f"Kd {red:.6g} {green:.6g} {blue:.6g}",
        # Ks is 0, because some readers interpret map_Ks as a specular colour and multiply it by Ks.
        "Ks 0 0 0",
        "Ns 1",
        f"d {alpha:.6g}",
        "illum 1",
        f"Pr {material.roughness:.6g}",
        f"Pm {material.metallic:.6g}",
    ]
    lines += [f"{key} {files[file]}" for file, keys in MAPS.items() if file in files for key in keys]
    return "\n".join(lines) + "\n"


def _geometry(asset: Asset) -> str:
    mesh, names = asset.mesh, obj_names(asset)
    parts = ["mtllib mesh.mtl\n", vertex_rows(mesh)]
    current = None
    for number, part in enumerate(asset.structure.parts):
        faces = asset.faces_of(number)
        if len(faces) == 0:
            continue
        if part.node != current:
            current = part.node
            parts.append(f"o {' '.join(asset.structure.nodes[current].name.split()) or 'mesh'}\n")
        parts.append(f"usemtl {names[part.material]}\n")
        parts.append(corner_rows(mesh, faces))
    return "".join(parts)
