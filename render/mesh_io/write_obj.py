"""Write Wavefront OBJ: mesh.obj, mesh.mtl and the textures."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from render.image_io.atomic import write_bytes
from render.mesh import Mesh
from render.mesh_io.texture_pngs import TexturePngs, Textures

MATERIAL, OBJ_FILE = "surface", "mesh.obj"
KD_FILE, KS_FILE, NORMAL_FILE = "texture_kd.png", "texture_ks.png", "texture_n.png"
# Two channels of ks are also written as grey pictures, for map_Pr and map_Pm of MTL's PBR extension.
ROUGHNESS_FILE, METALLIC_FILE = "texture_roughness.png", "texture_metallic.png"
# The file of each picture of `TexturePngs`.
FILES = {
    "kd": KD_FILE,
    "ks": KS_FILE,
    "roughness": ROUGHNESS_FILE,
    "metallic": METALLIC_FILE,
    "normal": NORMAL_FILE,
}


def write_obj(folder: Path | str, mesh: Mesh, textures: Textures | None = None) -> Path:
    """Write the files of `obj_files` to `folder`. Returns the path of mesh.obj, which is written last."""
    for name, content in obj_files(mesh, TexturePngs(textures)).items():
        write_bytes(Path(folder) / name, content)
    return Path(folder) / OBJ_FILE


def obj_files(mesh: Mesh, pngs: TexturePngs) -> dict[str, bytes]:
    """Return a dict from names to contents: the textures, mesh.mtl and, at the end, mesh.obj.

    The normal map has green along −v. Roughness and metallic are also separate grey pictures, for map_Pr and
    map_Pm. Positions are written with enough digits to be exact. v increases upward in OBJ, so v is written
    as 1 − v.
    """
    assert not pngs.names or mesh.uv is not None, "textures need texture coordinates"
    geometry = _geometry(mesh).encode()
    pictures = {file: pngs[picture] for picture, file in FILES.items() if picture in pngs}
    return {**pictures, "mesh.mtl": _material(pngs.names).encode(), OBJ_FILE: geometry}


def _material(textures: Collection[str]) -> str:
    albedo = "1 1 1" if "kd" in textures else "0.5 0.5 0.5"
    # Ks is 0, because some readers interpret map_Ks as a specular colour and multiply it by Ks.
    lines = [f"newmtl {MATERIAL}", "Ka 0 0 0", f"Kd {albedo}", "Ks 0 0 0", "Ns 1", "d 1", "illum 1"]
    if "kd" in textures:
        lines.append(f"map_Kd {KD_FILE}")
    if "ks" in textures:
        lines += [f"map_Ks {KS_FILE}", "Pr 1", f"map_Pr {ROUGHNESS_FILE}", "Pm 1", f"map_Pm {METALLIC_FILE}"]
    if "normal" in textures:
        lines += [f"bump {NORMAL_FILE}", f"norm {NORMAL_FILE}"]
    return "\n".join(lines) + "\n"


def _geometry(mesh: Mesh) -> str:
    return f"mtllib mesh.mtl\no mesh\n{vertex_rows(mesh)}usemtl {MATERIAL}\n{corner_rows(mesh)}"


def vertex_rows(mesh: Mesh) -> str:
    """Return the v, vt and vn statements of a mesh."""
    # Nine digits represent every float32 value uniquely. Meshes far from the origin are in float64 and get 15
    # digits.
    position = "v %.15g %.15g %.15g\n" if mesh.v_pos.dtype == torch.float64 else "v %.9g %.9g %.9g\n"
    parts = [_rows(position, _array(mesh.v_pos))]
    if mesh.uv is not None and mesh.uv_faces is not None:
        # 1 − v is computed in float64, because the difference is exact in float64.
        parts.append(_rows("vt %.9g %.9g\n", _array(mesh.uv).astype(np.float64) * [1, -1] + [0, 1]))
    return "".join([*parts, _rows("vn %.9g %.9g %.9g\n", _array(mesh.v_nrm))])


def corner_rows(mesh: Mesh, chosen: Tensor | slice = slice(None)) -> str:
    """Return the f statements of a mesh, or of some of its faces."""
    faces = mesh.faces[chosen].cpu().numpy().astype(np.int64) + 1
    if mesh.uv is None or mesh.uv_faces is None:
        return _rows("f %d//%d %d//%d %d//%d\n", faces.repeat(2, axis=1))
    uv_faces = mesh.uv_faces[chosen].cpu().numpy().astype(np.int64) + 1
    corners = np.stack([faces, uv_faces, faces], -1)
    return _rows("f %d/%d/%d %d/%d/%d %d/%d/%d\n", corners.reshape(-1, 9))


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def _rows(line: str, rows: np.ndarray, chunk: int = 2**14) -> str:
    """Return a line for each row. Rows are formatted in chunks, which is twice as fast as one by one."""
    some = (rows[start : start + chunk] for start in range(0, len(rows), chunk))
    return "".join((line * len(part)) % tuple(part.ravel().tolist()) for part in some)
