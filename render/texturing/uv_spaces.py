"""Analysis of the uv of a mesh with parts. It finds which faces share texels and which materials keep their
uv.

A texture can represent a material if every texel belongs to one surface point, or to points of faces with
equal uv triangles (for example, mirrored or repeated parts). For faces with equal uv triangles, the field is
evaluated at the points of the first of these faces. uv in another tile of a repeating texture are treated as
the corresponding uv in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from render.mesh import Mesh
from render.mesh_io.surface_material import SurfaceMaterial
from render.raster.interface import Rasteriser
from render.texturing.uv import tangents, uv_areas, uv_fault

# Before uv are compared, they are rounded to this number of steps per unit. A step is a sixteenth of a texel
# of a 4096² texture.
STEPS = 2**16
OUTSIDE = 1e-4


@dataclass(frozen=True)
class UVSpaces:
    """A description of how the faces of a mesh use the textures of their materials.

    tile_uv [F,3,2]: uv in [0, 1] for baking, valid for faces whose material keeps its uv. source [F]: for
    each face, the face at whose surface points its material is evaluated. This is the first face with the
    same uv triangle, which may be the face itself. source_corner [F,3]: for each corner, the corresponding
    corner of the source face. faults: for each material, the reason why its uv cannot be kept, or None if
    they can be kept.
    """

    tile_uv: Float[Tensor, "F 3 2"]
    source: Int[Tensor, " F"]
    source_corner: Int[Tensor, "F 3"]
    faults: tuple[str | None, ...]

    @property
    def own(self) -> Bool[Tensor, " F"]:
        """Return for each face whether its source is the face itself."""
        return self.source == torch.arange(len(self.source), device=self.source.device)


def split_by_handedness(mesh: Mesh, group: Int[Tensor, " F"]) -> Mesh:
    """Return the mesh with tangents and handedness. A uv vertex of faces with different handedness or `group`
    is split.
    """
    assert mesh.uv is not None and mesh.uv_faces is not None, "the mesh has no texture coordinates"
    mirrored = (uv_areas(mesh) < 0).long()
    kind = (2 * group + mirrored)[:, None].expand(-1, 3)
    kinds = int(kind.max()) + 1
    keys, uv_faces = torch.unique(mesh.uv_faces * kinds + kind, return_inverse=True)
    handedness = 1.0 - 2.0 * (keys % kinds % 2).to(mesh.uv.dtype)
    split = replace(mesh, uv=mesh.uv[keys // kinds], uv_faces=uv_faces, handedness=handedness)
    return replace(split, tangents=tangents(split))


def find_uv_spaces(
    mesh: Mesh,
    face_material: Int[Tensor, " F"],
    has_uv: Bool[Tensor, " F"],
    materials: Sequence[SurfaceMaterial],
    rasteriser: Rasteriser,
) -> UVSpaces:
    """Return which faces share texels, and which materials keep their uv.

    has_uv: whether the uv of a face are those of the file. All other faces were unwrapped for painting.
    """
    assert mesh.uv is not None and mesh.uv_faces is not None, "the mesh has no texture coordinates"
    uv = mesh.uv[mesh.uv_faces]
    tile = uv.mean(1, keepdim=True).floor()
    tile_uv = uv - tile
    source, source_corner = _shared(tile_uv, face_material)
    faults: list[str | None] = []
    for number, material in enumerate(materials):
        faces = torch.nonzero(face_material == number)[:, 0]
        own = faces[source[faces] == faces]
        if len(faces) == 0:
            faults.append(None)
        elif bool(has_uv[faces].any()) and not bool(has_uv[faces].all()):
            faults.append("some of its faces have no texture coordinates")
        else:
            faults.append(_fault(mesh, material, tile[faces, 0], tile_uv, own, rasteriser))
    kept = torch.tensor([fault is None for fault in faults], device=source.device)[face_material]
    itself = torch.arange(len(source), device=source.device)
    corners = torch.arange(3, device=source.device).expand(len(source), 3)
    return UVSpaces(
        tile_uv,
        torch.where(kept, source, itself),
        torch.where(kept[:, None], source_corner, corners),
        tuple(faults),
    )


def _shared(
    tile_uv: Float[Tensor, "F 3 2"], face_material: Int[Tensor, " F"]
) -> tuple[Int[Tensor, " F"], Int[Tensor, "F 3"]]:
    """Return for each face the first face with the same material and uv triangle, and the corresponding
    corners of this first face.
    """
    steps = (tile_uv.double() * STEPS).round().long()
    # The corners are sorted by uv, so that the order is the same for each rotation and reflection of a
    # triangle.
    code = steps[..., 0] * (4 * STEPS) + steps[..., 1]
    ordered, order = code.sort(-1)
    keys = torch.cat([ordered, face_material[:, None]], -1)
    _, group = torch.unique(keys, dim=0, return_inverse=True)
    faces = torch.arange(len(group), device=group.device)
    first = torch.full_like(group, len(group)).scatter_reduce(0, group, faces, "amin")
    source = first[group]
    rank = order.argsort(-1)
    return source, order[source].gather(-1, rank)


def _fault(
    mesh: Mesh,
    material: SurfaceMaterial,
    tiles: Float[Tensor, "N 2"],
    tile_uv: Float[Tensor, "F 3 2"],
    own: Int[Tensor, " M"],
    rasteriser: Rasteriser,
) -> str | None:
    for axis, wrap in enumerate(material.wrap):
        numbers = tiles[:, axis]
        if wrap == "clamp" and bool((numbers != 0).any()):
            return "its texture coordinates leave the image, which is not repeated"
        if wrap == "mirror" and bool((numbers.remainder(2) != 0).any()):
            return "its texture coordinates use mirrored copies of the image"
    corners = tile_uv[own]
    if bool((corners < -OUTSIDE).any()) or bool((corners > 1 + OUTSIDE).any()):
        return "some of its faces reach over the border of the image"
    return uv_fault(own_uv_mesh(mesh, tile_uv, own), rasteriser, allow_mirrored=True)


def own_uv_mesh(mesh: Mesh, tile_uv: Float[Tensor, "F 3 2"], faces: Int[Tensor, " M"]) -> Mesh:
    """Return a mesh of the faces with the indices `faces`. Each corner has a separate uv vertex in [0, 1]."""
    count = len(faces)
    return Mesh(
        mesh.v_pos,
        mesh.faces[faces],
        mesh.v_nrm,
        tile_uv[faces].reshape(-1, 2).clamp(0, 1),
        torch.arange(3 * count, device=faces.device).reshape(count, 3),
    )
