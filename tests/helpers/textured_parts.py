"""Make a textured mesh with two nodes, three materials and mirrored uv, for tests of given textures."""

import numpy as np
import torch

from render.mesh import Mesh, make_mesh
from render.mesh_io.asset import Asset
from render.mesh_io.structure import Node, Part, Structure
from render.mesh_io.surface_material import SurfaceMaterial
from render.texturing.uv_spaces import split_by_handedness

SIZE = (32, 32)


def plate(corner: tuple[float, float, float], mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return corners and uv of a square of side 0.5 that faces +z. mirrored: mirror the texture along x."""
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
    v_pos = np.concatenate([square * 0.5, np.zeros((4, 1))], 1) + corner
    uv = square * 0.9 + 0.05
    if mirrored:
        # The uv are mirrored, and the list of corners starts with the second corner.
        uv[:, 0] = 1 - uv[:, 0]
        v_pos, uv = v_pos[[1, 2, 3, 0]], uv[[1, 2, 3, 0]]
    # In the returned uv, v increases downwards.
    return v_pos, uv * [1, -1] + [0, 1]


def smooth_picture(seed: int, channels: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return the bytes of a smooth random picture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 4, 4, generator=generator) * 0.6 + 0.2
    fine = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=True).clamp(0.1, 0.9)
    return (fine[0].permute(1, 2, 0) * 255).round().byte().numpy()


def normal_picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return the bytes of a normal map with tilts of up to 30 degrees."""
    tilt = torch.from_numpy(smooth_picture(seed, 2, size)).float() / 255 - 0.5
    normal = torch.nn.functional.normalize(torch.cat([tilt, torch.ones(*size, 1)], -1), dim=-1)
    return ((normal * 0.5 + 0.5) * 255).round().byte().numpy()


def material(name: str, seed: int, bumpy: bool = True, **values) -> SurfaceMaterial:
    """Return a material with three pictures, or with two if it has no normal map."""
    return SurfaceMaterial(
        name,
        kd=smooth_picture(seed, 3),
        roughness_metallic=smooth_picture(seed + 1, 2),
        metallic=1.0,
        normal=normal_picture(seed + 2) if bumpy else None,
        **values,
    )


def textured_asset() -> Asset:
    """Return an asset with two nodes below an empty root node.

    Node "body" has the materials "red side" and "plain" (a constant). Node "wings" has two plates with the
    material "shared". The texture of the first plate is mirrored. The uv of the second plate are in another
    tile.
    """
    pieces = [
        (0, plate((-0.6, 0.0, 0.1))),
        (1, plate((0.1, 0.0, 0.1))),
        (2, plate((-0.6, -0.6, 0.0), mirrored=True)),
        (2, plate((0.1, -0.6, 0.0))),
    ]
    v_pos, uv, faces, face_part = [], [], [], []
    for number, (part, (corners, coordinates)) in enumerate(pieces):
        v_pos.append(corners)
        uv.append(coordinates + (np.array([2, -1]) if number == 3 else 0))
        faces.append(np.array([[0, 1, 2], [0, 2, 3]]) + 4 * number)
        face_part += [part, part]
    bare = make_mesh(torch.from_numpy(np.concatenate(v_pos)).float(), torch.from_numpy(np.concatenate(faces)))
    mesh = Mesh(bare.v_pos, bare.faces, bare.v_nrm, torch.from_numpy(np.concatenate(uv)).float(), bare.faces)
    moved = np.eye(4)
    moved[:3, 3] = 0.1, 0.2, -0.05
    turned = np.diag([-1.0, 2.0, 0.5, 1.0])
    nodes = (
        Node("root", matrix=moved),
        Node("body", 0, turned, "body mesh"),
        Node("wings", 0, np.eye(4), "wing mesh"),
    )
    materials = (
        material("red side", 1),
        SurfaceMaterial("plain", kd_factor=(0.5, 0.25, 0.125, 1.0), roughness=0.7, metallic=0.2),
        material("shared", 5),
    )
    parts = tuple(Part(node, number) for number, node in enumerate((1, 1, 2)))
    group = torch.tensor(face_part)
    structure = Structure(nodes, parts, 3)
    return Asset(split_by_handedness(mesh, group), group, structure, materials)
