"""A mesh with parts and materials. It is the input of the writers of all formats."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.mesh import Mesh
from render.mesh_io.structure import Structure
from render.mesh_io.surface_material import SurfaceMaterial

# The lower bound of the scale of a node transform. A smaller scale cannot be inverted in 32-bit numbers.
LEAST_SCALE = 1e-9


@dataclass(frozen=True)
class Asset:
    """A mesh in file coordinates with uv, tangents and handedness, and its parts.

    face_part: the index of each face's part in the structure. materials: the materials in the order of the
    material indices of the structure. Writers may omit the last material if it is an unused default material.
    """

    mesh: Mesh
    face_part: Int[Tensor, " F"]
    structure: Structure
    materials: tuple[SurfaceMaterial, ...]

    def faces_of(self, part: int) -> Int[Tensor, " N"]:
        """Return the indices of the faces of a part."""
        return torch.nonzero(self.face_part == part)[:, 0]

    def part_mesh(self, part: int) -> Mesh:
        """Return a mesh with the faces of a part, and with all vertices and uv."""
        mesh, chosen = self.mesh, self.faces_of(part)
        uv_faces = None if mesh.uv_faces is None else mesh.uv_faces[chosen]
        return Mesh(
            mesh.v_pos, mesh.faces[chosen], mesh.v_nrm, mesh.uv, uv_faces, mesh.tangents, mesh.handedness
        )

    def node_matrices(self) -> Float[np.ndarray, "N 4 4"] | None:
        """Return the transform of each node to world coordinates.

        The result is None if the transform of a node with a mesh cannot be inverted.
        """
        world = self.structure.world_matrices()
        used = sorted({part.node for part in self.structure.parts})
        scales = [np.linalg.svd(world[node, :3, :3], compute_uv=False).min() for node in used]
        return world if min(scales) > LEAST_SCALE else None
