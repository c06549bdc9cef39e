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

# The distance of the farthest vertex from the origin after normalisation. The training objects of the
# embedded prior have the same value, so a normalised mesh has the size of these objects.
REACH = 0.75
# A warning is logged if the distance of the farthest vertex from the origin is not between these values. With
# a smaller distance, a mesh is too small in the images. With a larger distance, it does not fit into the
# images.
REACHES_IN_VIEW = (0.25, 1.5)


@dataclass(frozen=True)
class FixedMesh:
    """A mesh from a file, and the index of the file's part that each face belongs to.

    face_part is None if the file format has no parts. The uv of a part whose `has_uv` is False are 0.
    """

    mesh: Mesh
    structure: Structure
    face_part: Int[Tensor, " F"] | None

    @property
    def merged(self) -> Mesh:
        """Return the mesh as one part. The result has uv only if all parts have uv."""
        if all(part.has_uv for part in self.structure.parts):
            return self.mesh
        return replace(self.mesh, uv=None, uv_faces=None)

    def to(self, device: torch.device | str) -> "FixedMesh":
        face_part = None if self.face_part is None else self.face_part.to(device)
        return replace(self, mesh=self.mesh.to(device), face_part=face_part)


def load_fixed_mesh(path: str | Path) -> Mesh:
    """Load a mesh file with smooth normals and consistent orientation.

    Faces that point inwards or whose orientation differs from that of their neighbours are flipped. uv and
    uv_faces are None unless every face has texture coordinates. The caller must check or replace the uv and
    compute the tangents. v_pos is float32, or float64 if the mesh is so far from the origin that float32
    would be too coarse. A mesh in float64 must be converted with `Placement.into_view` before rendering.

    Raises FileNotFoundError or ValueError. The message contains the file and the fault.
    """
    return _oriented(load_mesh(path), path)


def load_fixed_parts(path: str | Path) -> FixedMesh:
    """Load a mesh like `load_fixed_mesh`, but keep the file's parts and the uv of each part that has uv."""
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
    """Return the mesh with rotated positions, normals and tangents. If `rotation` is None, return the same
    mesh.
    """
    if rotation is None:
        return mesh
    tangents = None if mesh.tangents is None else rotated(mesh.tangents, rotation)
    v_pos, v_nrm = (rotated(vectors, rotation) for vectors in (mesh.v_pos, mesh.v_nrm))
    return replace(mesh, v_pos=v_pos, v_nrm=v_nrm, tangents=tangents)


@dataclass(frozen=True)
class Placement:
    """The map from normalised coordinates to file coordinates: file = centre + size · normalised.

    centre has the precision of the file coordinates: float32, or float64 if the mesh is far from the origin.
    """

    centre: Float[Tensor, " 3"]
    size: float

    def into_view(self, mesh: Mesh) -> Mesh:
        """Return the mesh in normalised coordinates, float32."""
        return replace(mesh, v_pos=((mesh.v_pos - self.centre.to(mesh.v_pos)) / self.size).float())

    def back(self, mesh: Mesh) -> Mesh:
        """Return the mesh in file coordinates, in the precision of `centre`."""
        v_pos = mesh.v_pos.to(self.centre.dtype)
        return replace(mesh, v_pos=v_pos * self.size + self.centre.to(v_pos))


def placement(mesh: Mesh, normalise: bool) -> Placement:
    """Return the Placement whose normalised coordinates have the centre of the mesh's bounding box at the
    origin and the farthest vertex at the distance REACH.

    If `normalise` is False, the Placement is the identity, and a warning is logged if the mesh is too small
    or too large for the images or if its bounding box does not contain the origin.
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
