"""Meshes whose size the host does not know yet.

The size of a DMTet surface is computed on the GPU. A host that waits for it cannot start the kernels of the
renderer early enough, and the GPU is idle in the meantime. A pending mesh therefore has more vertices and
faces than the surface. The additional faces have no area. The host reads the size when it has started all
kernels of the step.
"""

from dataclasses import dataclass

from geometry.marching_tets import check_not_empty
from render.async_copy import AsyncCopy
from render.mesh import Mesh

# Numbers of crossed edges, faces, and vertices of crossed edges (see `marching_tets.padded_topology`). The
# surface has one vertex on each crossed edge.
ListLengths = tuple[int, int, int]

# The lists have space for MARGIN times the entries of an earlier step, rounded up to a multiple of GRANULE.
MARGIN, GRANULE = 1.125, 4096
# The space is changed if a list fills more than FULL of it or less than EMPTY, so that a list that grows
# steadily never exceeds its space.
FULL, EMPTY = 0.97, 0.6


class TopologySpace:
    """The space for the lists of `marching_tets.padded_topology`, chosen from the lengths in earlier steps.

    limit: the maximum lengths. rows: the space of each list, or None before the first call of `update`.
    """

    def __init__(self, limit: ListLengths) -> None:
        self._limit = limit
        self.rows: ListLengths | None = None

    def update(self, lengths: ListLengths) -> None:
        """Choose the space for lists with the given lengths. It is kept if it is suitable."""
        if self.rows is None:
            self.rows = self._space(lengths)
            return
        pairs = list(zip(lengths, self.rows, strict=True))
        smaller = all(length < EMPTY * row - GRANULE for length, row in pairs)
        if smaller or any(length > FULL * row for length, row in pairs):
            self.rows = self._space(lengths)

    def _space(self, lengths: ListLengths) -> ListLengths:
        rows = (-(-int(MARGIN * length + 1) // GRANULE) * GRANULE for length in lengths)
        return tuple(min(row, most) for row, most in zip(rows, self._limit, strict=True))


@dataclass(frozen=True)
class PendingMesh:
    """A mesh of unknown size.

    mesh: the mesh with additional vertices and faces at the end. lengths: the actual lengths of the lists, or
    None if the mesh has no additional vertices and faces. rows: the space that the lists had. space: the
    space for the next lists, which is updated.
    """

    mesh: Mesh
    lengths: AsyncCopy | None = None
    rows: ListLengths | None = None
    space: TopologySpace | None = None

    def finished(self) -> Mesh | None:
        """Wait for the size, and return the mesh without the additional vertices and faces.

        The result is None if the space was too small. In this case, a part of the surface is missing in
        `mesh`, and the next pending mesh has more space.

        Raises EmptySurfaceError if the surface has no triangles.
        """
        if self.lengths is None:
            return self.mesh
        lengths = tuple(self.lengths.read().tolist())
        vertices, faces, _ = lengths
        check_not_empty(faces)
        self.space.update(lengths)
        if any(length > row for length, row in zip(lengths, self.rows, strict=True)):
            return None
        return Mesh(self.mesh.v_pos[:vertices], self.mesh.faces[:faces], self.mesh.v_nrm[:vertices])
