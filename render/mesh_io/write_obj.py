"""Write Wavefront OBJ: mesh.obj, mesh.mtl and the textures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from render.image_io.atomic import write_bytes, write_text
from render.image_io.image import encode_normal, encode_pngs
from render.mesh import Mesh
from render.shade.brdf import linear_to_srgb

MATERIAL = "surface"
KD_FILE, KS_FILE, NORMAL_FILE = "texture_kd.png", "texture_ks.png", "texture_n.png"
# Two channels of ks are also written as grey pictures, for map_Pr and map_Pm of MTL's PBR extension.
ROUGHNESS_FILE, METALLIC_FILE = "texture_roughness.png", "texture_metallic.png"


def write_obj(
    folder: Path | str, mesh: Mesh, textures: Mapping[str, Float[Tensor, "H W 3"]] | None = None
) -> Path:
    """Write mesh.obj, mesh.mtl and the given textures to `folder`. Returns the path of mesh.obj.

    textures: a dict with the optional keys kd, ks and normal. kd is the linear RGB albedo and is written as
    sRGB. ks is (occlusion, roughness, metallic) and is written without conversion. normal is in tangent space
    with components in [−1,1] and is written as n · 0.5 + 0.5, with green along −v. Roughness and metallic are
    also written as separate grey pictures for map_Pr and map_Pm. Positions are written with enough digits to
    be exact. v increases upward in OBJ, so v is written as 1 − v. mesh.obj is written last.
    """
    folder, textures = Path(folder), dict(textures or {})
    assert not textures or mesh.uv is not None, "textures need texture coordinates"
    assert textures.keys() <= {"kd", "ks", "normal"}, f"unknown texture among {sorted(textures)}"
    pictures = {}
    if "kd" in textures:
        pictures[KD_FILE] = linear_to_srgb(textures["kd"])
    if "ks" in textures:
        pictures[KS_FILE] = textures["ks"]
        pictures[ROUGHNESS_FILE] = textures["ks"][..., 1:2]
        pictures[METALLIC_FILE] = textures["ks"][..., 2:3]
    if "normal" in textures:
        pictures[NORMAL_FILE] = encode_normal(textures["normal"])
    for name, content in zip(pictures, encode_pngs(list(pictures.values())), strict=True):
        write_bytes(folder / name, content)
    write_text(folder / "mesh.mtl", _material(textures))
    write_text(folder / "mesh.obj", _geometry(mesh))
    return folder / "mesh.obj"


def _material(textures: Mapping[str, Tensor]) -> str:
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
