"""The export of a painted mesh with parts. Each material has its own textures, or all share one atlas.

A material keeps its uv if a texture can represent it (see uv_spaces.py). Otherwise, its faces are unwrapped
again and the material is transferred to the new uv. A material that is not painted at all is exported with
its uv and pictures from the file. If an atlas or fewer faces are requested, all materials are transferred to
new uv.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from render.image_io.image import encode_normal
from render.mesh import Mesh
from render.mesh_io.asset import Asset
from render.mesh_io.structure import Structure
from render.mesh_io.surface_material import SurfaceMaterial
from render.raster.interface import Rasteriser
from render.shade.brdf import linear_to_srgb, srgb_to_linear
from render.shade.material import MaterialField
from render.shade.normals import bump, safe_normalize
from render.texturing.bake import bake
from render.texturing.decimate import decimate
from render.texturing.given import PaintMask, given_texture, mask_at, resample, to_byte
from render.texturing.painted_surface import Located, PaintedSurface
from render.texturing.transfer import PAINTING_RES, frame_at, frame_finder, nearest_finder, tangent_space
from render.texturing.uv import ExportConfig, unwrap
from render.texturing.uv_spaces import UVSpaces, own_uv_mesh

logger = logging.getLogger(__name__)

Textures = dict[str, Float[Tensor, "H W C"]]
PointValues = dict[str, Float[Tensor, "N C"]]


@dataclass(frozen=True)
class PaintedParts:
    """A mesh with parts that is being painted.

    mesh: a mesh with uv, tangents and handedness, in the coordinates in which it is painted (see
    `Placement.into_view`). has_uv: whether the uv of a face are those of the file. materials: the materials
    of the file.
    """

    mesh: Mesh
    face_part: Int[Tensor, " F"]
    face_material: Int[Tensor, " F"]
    has_uv: Bool[Tensor, " F"]
    structure: Structure
    materials: tuple[SurfaceMaterial, ...]
    spaces: UVSpaces
    surface: PaintedSurface
    mask: PaintMask | None


@torch.no_grad()
def export_parts(
    parts: PaintedParts, field: MaterialField, config: ExportConfig, rasteriser: Rasteriser
) -> Asset:
    """Return the painted mesh with its textures, in the coordinates of `parts.mesh`."""
    if config.atlas or 0 < config.export_faces < len(parts.mesh.faces):
        return _export_rebuilt(parts, field, config, rasteriser)
    target, materials = parts.mesh, list(parts.materials)
    for number, material in enumerate(parts.materials):
        faces = torch.nonzero(parts.face_material == number)[:, 0]
        if len(faces) == 0 or _unpainted(parts, material):
            continue
        fault = _unkept(parts, number, faces, config)
        if fault is None:
            materials[number] = _baked_material(parts, field, number, config, rasteriser)
            continue
        logger.info("material %s is unwrapped again: %s", material.name, fault)
        chart = unwrapped(target, faces, config)
        textures = _transferred(parts, field, faces, chart, config, rasteriser)
        materials[number] = _new_material(parts, number, textures)
        target = with_chart(target, faces, chart)
    return Asset(target, parts.face_part, parts.structure, tuple(materials))


def _unpainted(parts: PaintedParts, material: SurfaceMaterial) -> bool:
    return parts.mask is not None and not bool(parts.mask.of(material).any())


def _unkept(parts: PaintedParts, number: int, faces: Int[Tensor, " N"], config: ExportConfig) -> str | None:
    """Return the reason why a material cannot keep the uv of the painted mesh, or None if it can."""
    unwrapped_here = not bool(parts.has_uv[faces].any())
    if unwrapped_here and config.texture_res != PAINTING_RES:
        return f"texture_res is not that of painting, {PAINTING_RES[0]} x {PAINTING_RES[1]}"
    return parts.spaces.faults[number]


def _export_rebuilt(
    parts: PaintedParts, field: MaterialField, config: ExportConfig, rasteriser: Rasteriser
) -> Asset:
    """Return the exported mesh with fewer faces or an atlas. All faces get new uv, and the material is
    transferred.
    """
    fewer = 0 < config.export_faces < len(parts.mesh.faces)
    target, face_part = parts.mesh, parts.face_part
    if fewer:
        target = decimate(parts.mesh, config.export_faces)
        middle = target.v_pos[target.faces].mean(1)
        face_part = face_part[nearest_finder(parts.mesh)(middle)[1]]
    part_material = torch.tensor([part.material for part in parts.structure.parts], device=face_part.device)
    face_material = part_material[face_part]
    target = Mesh(
        target.v_pos,
        target.faces,
        target.v_nrm,
        target.v_pos.new_zeros(0, 2),
        torch.zeros_like(target.faces),
        target.v_pos.new_zeros(0, 3),
        target.v_pos.new_zeros(0),
    )
    materials, used = list(parts.materials), sorted(set(face_material.tolist()))
    groups = [used] if config.atlas else [[number] for number in used]
    for group in groups:
        chosen = torch.isin(face_material, torch.tensor(group, device=face_material.device))
        faces = torch.nonzero(chosen)[:, 0]
        original = torch.isin(parts.face_material, torch.tensor(group, device=face_material.device))
        chart = unwrapped(target, faces, config)
        painted_faces = torch.nonzero(original)[:, 0]
        textures = _transferred(parts, field, painted_faces, chart, config, rasteriser)
        for number in group:
            materials[number] = _new_material(parts, number, textures, shared=config.atlas)
        target = with_chart(target, faces, chart)
    return Asset(target, face_part, parts.structure, tuple(materials))


def _baked_material(
    parts: PaintedParts,
    field: MaterialField,
    number: int,
    config: ExportConfig,
    rasteriser: Rasteriser,
) -> SurfaceMaterial:
    """Bake the field into the uv that a material keeps. Where the mask is 0, the file's texels are kept."""
    own = torch.nonzero((parts.face_material == number) & parts.spaces.own)[:, 0]
    flat = own_uv_mesh(parts.mesh, parts.spaces.tile_uv, own)
    size, given = config.texture_res, parts.materials[number]

    def values(points: Float[Tensor, "N 3"]) -> PointValues:
        found = field(points)
        return {"kd": found.kd, "ks": found.ks, "normal": found.normal}

    baked = bake(flat, values, size, rasteriser)
    painted = _as_bytes(baked).cpu()
    if parts.mask is not None:
        old, mask = given_texture(given, size), mask_at(parts.mask, given, size)[..., None]
        mixed = _as_bytes(_mixed(old, baked, mask))
        painted = torch.where(mask == 0, old, torch.where(mask == 255, painted, mixed))
    with_normal = field.bumpy
    if parts.surface.given_normals and given.normal is not None:
        painted = torch.cat([painted[..., :6], given_texture(given, size)[..., 6:]], -1)
        with_normal = True
    return _material_of(parts, number, painted, with_normal, given.wrap)


def _mixed(old: UInt8[Tensor, "H W 9"], new: Textures, mask: UInt8[Tensor, "H W 1"]) -> Textures:
    """Return mask · new + (1 − mask) · old for linear base colour, ks and unit normals."""
    share, old = mask.float() / 255, old.float() / 255
    before = {"kd": srgb_to_linear(old[..., :3]), "ks": old[..., 3:6], "normal": old[..., 6:] * 2 - 1}
    mixed = {name: torch.lerp(before[name], new[name].cpu(), share) for name in before}
    return {**mixed, "normal": safe_normalize(mixed["normal"])}


def _as_bytes(textures: Textures) -> UInt8[Tensor, "H W 9"]:
    stored = [linear_to_srgb(textures["kd"]), textures["ks"], encode_normal(textures["normal"])]
    return to_byte(torch.cat(stored, -1))


def _material_of(
    parts: PaintedParts,
    number: int,
    painted: UInt8[Tensor, "H W 9"],
    with_normal: bool,
    wrap: tuple[str, str],
) -> SurfaceMaterial:
    """Return the material with new pictures and factors of 1. Alpha and the other settings are those of the
    file.
    """
    given, pixels = parts.materials[number], painted.numpy()
    kd = pixels[..., :3]
    if given.kd is not None and given.kd.shape[-1] == 4:
        alpha = resample(torch.from_numpy(given.kd[..., 3:]).float() / 255, tuple(kd.shape[:2]))
        kd = torch.cat([painted[..., :3], to_byte(alpha)], -1).numpy()
    return replace(
        given,
        kd=kd,
        kd_factor=(1.0, 1.0, 1.0, given.kd_factor[3]),
        roughness_metallic=pixels[..., 4:6],
        roughness=1.0,
        metallic=1.0,
        occlusion=255 - pixels[..., 3:4],
        occlusion_strength=1.0,
        normal=pixels[..., 6:] if with_normal else None,
        normal_scale=1.0,
        wrap=wrap,
    )


def _new_material(
    parts: PaintedParts, number: int, textures: Textures, shared: bool = False
) -> SurfaceMaterial:
    """Return a material for new uv. Alpha is removed, because the given picture with alpha fits only the old
    uv.
    """
    given = parts.materials[number]
    if given.kd is not None and given.kd.shape[-1] == 4:
        logger.warning("material %s: its alpha channel is dropped, because its uv are new", given.name)
        parts = replace(
            parts,
            materials=tuple(replace(m, kd=None) if i == number else m for i, m in enumerate(parts.materials)),
        )
    bumpy = "normal" in textures
    flat = {**textures, "normal": textures.get("normal", torch.zeros_like(textures["kd"]))}
    return _material_of(parts, number, _as_bytes(flat).cpu(), bumpy, ("clamp", "clamp"))


def unwrapped(mesh: Mesh, faces: Int[Tensor, " N"], config: ExportConfig) -> Mesh:
    """Return a mesh of the faces with the indices `faces`, with new uv and tangents."""
    used, local = torch.unique(mesh.faces[faces], return_inverse=True)
    chosen = Mesh(mesh.v_pos[used], local, mesh.v_nrm[used])
    return unwrap(chosen, config.unwrap, config.texture_res, config.uv_padding_block)


def with_chart(mesh: Mesh, faces: Int[Tensor, " N"], chart: Mesh) -> Mesh:
    """Return `mesh` with the uv and tangents of `chart` for the faces with the indices `faces`."""
    uv_faces = mesh.uv_faces.clone()
    uv_faces[faces] = chart.uv_faces + len(mesh.uv)
    return replace(
        mesh,
        uv=torch.cat([mesh.uv, chart.uv]),
        uv_faces=uv_faces,
        tangents=torch.cat([mesh.tangents, chart.tangents]),
        handedness=torch.cat([mesh.handedness, torch.ones_like(chart.uv[:, 0])]),
    )


def _transferred(
    parts: PaintedParts,
    field: MaterialField,
    faces: Int[Tensor, " N"],
    chart: Mesh,
    config: ExportConfig,
    rasteriser: Rasteriser,
) -> Textures:
    """Return the material of the painted faces with the indices `faces`, baked into the uv of `chart`."""
    return bake(chart, transferred_field(parts, field, faces, chart), config.texture_res, rasteriser)


def transferred_field(
    parts: PaintedParts, field: MaterialField, faces: Int[Tensor, " N"], chart: Mesh
) -> Callable[[Float[Tensor, "N 3"]], PointValues]:
    """Return a function from points to the material at the nearest points of the painted faces `faces`.

    The normals of this material are in the tangent space of `chart`.
    """
    mesh, surface = parts.mesh, parts.surface
    find = nearest_finder(Mesh(mesh.v_pos, mesh.faces[faces], mesh.v_nrm))
    frame_of_chart = frame_finder(chart)
    with_normal = field.bumpy or surface.given_normals

    def values(points: Float[Tensor, "N 3"]) -> PointValues:
        _, row, weights = find(points)
        located = Located(faces[row], weights)
        found = surface.material(field, located)
        if not with_normal:
            return {"kd": found.kd, "ks": found.ks}
        normal, tangent = frame_at(mesh, located.face, weights)
        world = bump(normal, tangent, surface.unmirrored(located, found.normal))
        _, up, along = frame_of_chart(points)
        return {"kd": found.kd, "ks": found.ks, "normal": tangent_space(world, up, along)}

    return values
