"""The appearance stage for a mesh with several parts, or with textures that the config uses."""

import logging
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from configs.schema import Config
from geometry.fixed_mesh import FixedMesh
from render.mesh import Mesh
from render.mesh_io.surface_material import SurfaceMaterial
from render.raster.interface import Rasteriser
from render.shade.material import MaterialField
from render.texturing.given import PaintMask, TexelTable
from render.texturing.given_config import read_mask, read_materials
from render.texturing.painted_surface import PaintedSurface
from render.texturing.part_export import PaintedParts, unwrapped, with_chart
from render.texturing.texture_fit import TextureFit
from render.texturing.transfer import PAINTING_RES
from render.texturing.uv_spaces import find_uv_spaces, split_by_handedness
from training.input_files import TEXTURES, InputFiles, input_paths

logger = logging.getLogger(__name__)

# If a mesh has more materials than this, a warning suggests `atlas`, which writes one set of textures.
MANY = 16


def paints_parts(config: Config, fixed: FixedMesh) -> bool:
    """Return whether base_mesh has several parts (painted separately) or the config uses its textures."""
    return config.textures.used or fixed.structure.several


def read_parts(config: Config, fixed: FixedMesh, rasteriser: Rasteriser, inputs: InputFiles) -> PaintedParts:
    """Read the materials of base_mesh and the paint mask of the config, and return the parts of the mesh."""
    paths, mesh = input_paths(config), config.run.base_mesh
    with inputs.reading(TEXTURES, *paths.get(TEXTURES, ())):
        materials = read_materials(config.textures, mesh)
    with inputs.reading("paint_mask", *paths.get("paint_mask", ())):
        mask = read_mask(config.textures, materials, mesh)
    return build_parts(config, fixed, (materials, mask), rasteriser)


def texture_fit(
    config: Config, parts: PaintedParts | None, material: MaterialField, rasteriser: Rasteriser
) -> TextureFit | None:
    """Return the loss that fits the material to the textures of base_mesh, or None without init_textures."""
    if parts is None or not config.textures.init_textures:
        return None
    fit = TextureFit(parts, material, rasteriser)
    fit.log_clipped()
    return fit


def build_parts(
    config: Config,
    fixed: FixedMesh,
    given: tuple[tuple[SurfaceMaterial, ...], PaintMask | None],
    rasteriser: Rasteriser,
) -> PaintedParts:
    """Build the parts of a mesh for the appearance stage, with texture coordinates for all faces.

    given: the materials of the mesh file, and the paint mask.
    """
    mesh, structure, (materials, mask) = fixed.mesh, fixed.structure, given
    device = mesh.v_pos.device
    face_part = fixed.face_part
    if face_part is None:
        face_part = torch.zeros(len(mesh.faces), dtype=torch.long)
    face_part = face_part.to(device)
    face_material = torch.tensor([part.material for part in structure.parts], device=device)[face_part]
    has_uv = torch.tensor([part.has_uv for part in structure.parts], device=device)[face_part]
    count = len(torch.unique(face_material))
    if count > MANY and not config.export.atlas:
        logger.warning(
            "base_mesh has %d materials, each with textures of its own; atlas makes one set", count
        )
    mesh = _with_all_uv(config, mesh, face_material, has_uv)
    mesh = split_by_handedness(mesh, face_material)
    spaces = find_uv_spaces(mesh, face_material, has_uv, materials, rasteriser)
    read = config.textures.used
    given_normals = read and not config.material.bump and any(m.normal is not None for m in materials)
    surface = PaintedSurface(
        mesh,
        face_material,
        has_uv,
        spaces,
        TexelTable(materials, mask).to(device) if read else None,
        masked=mask is not None,
        given_normals=given_normals,
    )
    return PaintedParts(
        mesh, face_part, face_material, has_uv, structure, materials, spaces, surface.to(device), mask
    )


def _with_all_uv(
    config: Config, mesh: Mesh, face_material: Int[Tensor, " F"], has_uv: Bool[Tensor, " F"]
) -> Mesh:
    """Unwrap the faces that have no uv, separately for each material, and return the mesh."""
    if mesh.uv is None:
        mesh = replace(mesh, uv=mesh.v_pos.new_zeros(0, 2), uv_faces=torch.zeros_like(mesh.faces))
    count, settings = len(mesh.uv), replace(config.export, texture_res=PAINTING_RES)
    # Tangents and handedness are placeholders, because `split_by_handedness` computes the final values.
    mesh = replace(mesh, tangents=mesh.v_pos.new_zeros(count, 3), handedness=mesh.v_pos.new_zeros(count))
    for number in torch.unique(face_material[~has_uv]).tolist():
        faces = torch.nonzero((face_material == number) & ~has_uv)[:, 0]
        mesh = with_chart(mesh, faces, unwrapped(mesh, faces, settings))
    return mesh
