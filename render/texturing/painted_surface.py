"""The painted surface. It defines where the field is evaluated and where the field replaces the given
textures, which are those of the mesh file.

With a paint mask m, the material at a point is m · field + (1 − m) · given material.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from render.gbuffer import SurfacePoints
from render.mesh import Mesh, face_cross
from render.shade.material import Material
from render.shade.normals import safe_normalize
from render.texturing.given import GivenTexels, TexelTable
from render.texturing.uv_spaces import UVSpaces

Field = Callable[[Float[Tensor, "N 3"]], Material]


@dataclass(frozen=True)
class Located:
    """N surface points. A point is a face and barycentric weights for the face's corners 0, 1, 2."""

    face: Int[Tensor, " N"]
    weights: Float[Tensor, "N 3"]


class PaintedSurface(nn.Module):
    """A mesh with parts. It maps points on its faces to materials.

    The buffers are not part of checkpoints, because they depend only on the input files.

    mesh: a mesh with uv, tangents and handedness. has_uv: whether the uv of a face are those of the file.
    Faces without uv in the file use the texel at uv (0, 0). table: the given textures and the mask, or None
    if neither is used. masked: whether the given textures are mixed in where the mask is below 1.
    given_normals: whether the normals of the given textures are used. Requires a field without normals.
    """

    def __init__(
        self,
        mesh: Mesh,
        face_material: Int[Tensor, " F"],
        has_uv: Bool[Tensor, " F"],
        spaces: UVSpaces,
        table: TexelTable | None,
        *,
        masked: bool,
        given_normals: bool,
    ):
        super().__init__()
        assert mesh.uv is not None and mesh.handedness is not None, "the surface needs uv and handedness"
        corners = mesh.v_pos[mesh.faces]
        shared = corners[spaces.source[:, None], spaces.source_corner]
        buffers = {
            "corners": shared,
            "uv": mesh.uv[mesh.uv_faces] * has_uv[:, None, None],
            "face_material": face_material,
            "face_handedness": mesh.handedness[mesh.uv_faces[:, 0]],
            "world_area": face_cross(mesh.v_pos, mesh.faces).norm(dim=-1),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values, persistent=False)
        self.table, self.masked, self.given_normals = table, masked, given_normals
        self.shares = not bool(spaces.own.all())

    def locate(self, points: SurfacePoints) -> Located:
        """Return the faces and barycentric weights for the points of a G-buffer."""
        rast = points.gather(points.rast.detach())
        u, v = rast[:, 0], rast[:, 1]
        # rast stores face index + 1.
        return Located(rast[:, 3].long() - 1, torch.stack([u, v, 1 - u - v], -1))

    def field_points(self, located: Located) -> Float[Tensor, "N 3"]:
        """Return the points at which the field is evaluated. Surface points that share a texel have the same
        evaluation point.
        """
        return (self.corners[located.face] * located.weights[..., None]).sum(1)

    def given(self, located: Located) -> GivenTexels:
        """Return the given material at the points."""
        assert self.table is not None, "the textures of the file are not read"
        uv = (self.uv[located.face] * located.weights[..., None]).sum(1)
        return self.table(self.face_material[located.face], uv)

    def material(self, field: Field, located: Located) -> Material:
        """Return the material at the points. Where the mask is 0, it is the given material."""
        painted = field(self.field_points(located))
        if not (self.masked or self.given_normals):
            return painted
        given = self.given(located)
        normal = given.normal if self.given_normals else painted.normal
        if not self.masked:
            return Material(painted.kd, painted.ks, normal)
        kd, ks = (
            torch.lerp(old, new, given.mask) for old, new in ((given.kd, painted.kd), (given.ks, painted.ks))
        )
        if not self.given_normals:
            normal = safe_normalize(torch.lerp(given.normal, normal, given.mask))
        return Material(kd, ks, normal)

    def unmirrored(self, located: Located, local: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Negate y of tangent-space normals where the texture is mirrored, so that the normals are valid for
        handedness 1.
        """
        x, y, z = local.unbind(-1)
        return torch.stack([x, y * self.face_handedness[located.face], z], -1)
