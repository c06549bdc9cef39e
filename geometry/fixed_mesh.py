"""The fixed mesh of the appearance stage, loaded from a file and optionally normalised."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geometry.axes import rotated
from geometry.orientation import flipped_faces
from render.mesh import Mesh, smooth_normals
from render.mesh_io.load import MeshFile, load_mesh
from render.mesh_io.structure import Structure

logger = logging.getLogger(__name__)

# Largest distance from the origin after normalisation. The training objects of the embedded prior have it
# too.
REACH = 0.75
# A mesh that reaches less far is too small in the images. One that reaches farther leaves them.
REACHES_IN_VIEW = (0.25, 1.5)


@dataclass(frozen=True)
class FixedMesh:
    """A mesh from a file, and which of the file's parts each face belongs to.

    face_part is None for a format without parts. Parts whose `has_uv` is False have uv 0.
    """

    mesh: Mesh
    structure: Structure
    face_part: Int[Tensor, " F"] | None

    @property
    def merged(self) -> Mesh:
        """The mesh as one part: its uv are None unless all parts have uv."""
        if all(part.has_uv for part in self.structure.parts):
            return self.mesh
        return replace(self.mesh, uv=None, uv_faces=None)

    def to(self, device: torch.device | str) -> "FixedMesh":
        face_part = None if self.face_part is None else self.face_part.to(device)
        return replace(self, mesh=self.mesh.to(device), face_part=face_part)


def load_fixed_mesh(path: str | Path) -> Mesh:
    """Load a mesh file with smooth normals and consistent orientation.

    Faces that point inwards or against their neighbours are flipped. uv and uv_faces are None unless every
    face has texture coordinates. The caller checks or replaces them and computes the tangents.
    v_pos is float32, or float64 if the mesh is so far from the origin that float32 would round it. In that
    case call `placement` before rendering.
    Raises FileNotFoundError or ValueError naming the file and its fault.
    """
    return _oriented(load_mesh(path), path)


def load_fixed_parts(path: str | Path) -> FixedMesh:
    """`load_fixed_mesh` with the parts of the file, and with the uv of the parts that have them."""
    source = load_mesh(path, partial_uv=True)
    return FixedMesh(_oriented(source, path), source.structure, source.face_part)


def _oriented(source: MeshFile, path: str | Path) -> Mesh:
    v_pos, faces, uv_faces = source.v_pos, source.faces, source.uv_faces
    turned = flipped_faces(v_pos, faces)
    if turned.any():
        count, total = int(turned.sum()), len(faces)
        logger.warning(
            "mesh file %s: %d of %d faces point inwards or against their neighbours; they are flipped",
            path,
            count,
            total,
        )
        faces = torch.where(turned[:, None], faces.flip(-1), faces)
        uv_faces = None if uv_faces is None else torch.where(turned[:, None], uv_faces.flip(-1), uv_faces)
    normals = smooth_normals(v_pos, faces)
    if any(source.origin):
        v_pos = v_pos.double() + torch.tensor(source.origin, dtype=torch.float64)
    return Mesh(v_pos, faces, normals, source.uv, uv_faces)


def rotate_mesh(mesh: Mesh, rotation: Float[Tensor, "3 3"] | None) -> Mesh:
    """The mesh with positions, normals and tangents rotated; None: unchanged."""
    if rotation is None:
        return mesh
    tangents = None if mesh.tangents is None else rotated(mesh.tangents, rotation)
    v_pos, v_nrm = (rotated(vectors, rotation) for vectors in (mesh.v_pos, mesh.v_nrm))
    return replace(mesh, v_pos=v_pos, v_nrm=v_nrm, tangents=tangents)


@dataclass(frozen=True)
class Placement:
    """Maps file coordinates to normalised coordinates and back: file = centre + size · normalised.

    centre has the precision of the file coordinates: float32, or float64 far from the origin.
    """

    centre: Float[Tensor, " 3"]
    size: float

    def into_view(self, mesh: Mesh) -> Mesh:
        """The mesh in normalised coordinates, float32."""
        return replace(mesh, v_pos=((mesh.v_pos - self.centre.to(mesh.v_pos)) / self.size).float())

    def back(self, mesh: Mesh) -> Mesh:
        """The mesh in file coordinates, in the precision of `centre`."""
        v_pos = mesh.v_pos.to(self.centre.dtype)
        return replace(mesh, v_pos=v_pos * self.size + self.centre.to(v_pos))


def placement(mesh: Mesh, normalise: bool) -> Placement:
    """The Placement that centres the bounding box of a mesh on the origin and scales its reach to REACH.

    It is the identity if normalise is False. In that case a mesh that is not well visible is logged as a
    warning.
    """
    if mesh.v_pos.dtype == torch.float64:
        rounding = float(mesh.v_pos.abs().max()) * 2**-24
        logger.warning(
            "base_mesh lies far from the origin: it is painted in full precision, and mesh.obj keeps its "
            "coordinates; formats of 32-bit numbers (mesh.glb, mesh.usd) round them by up to %.2g",
            rounding,
        )
    low, high = mesh.v_pos.amin(0), mesh.v_pos.amax(0)
    if normalise:
        centre = (low + high) / 2
        return Placement(centre, float((mesh.v_pos - centre).norm(dim=-1).max()) / REACH)
    reach = float(mesh.v_pos.norm(dim=-1).max())
    least, most = REACHES_IN_VIEW
    if not least < reach < most or ((low > 0) | (high < 0)).any():
        logger.warning(
            "base_mesh reaches %.3g from the origin, within %s to %s; the cameras look at the origin and see "
            "about 1.2 around it: set normalise_mesh to centre and scale it",
            reach,
            [round(value, 3) for value in low.tolist()],
            [round(value, 3) for value in high.tolist()],
        )
    return Placement(mesh.v_pos.new_zeros(3), 1.0)
