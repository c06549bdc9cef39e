"""Quality measures of a triangle mesh: roughness, non-manifold edges, loose parts."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from geometry.regularisers import sorted_edges
from render.mesh import Mesh, face_cross


@dataclass(frozen=True)
class SurfaceQuality:
    """Quality measures of a mesh.

    roughness: see `roughness`, in degrees. non_manifold: share of edges that do not have exactly two faces.
    loose: share of the area outside the largest connected part. parts: number of connected parts. faces:
    number of faces.
    """

    roughness: float
    non_manifold: float
    loose: float
    parts: int
    faces: int


@torch.no_grad()
def surface_quality(mesh: Mesh) -> SurfaceQuality:
    """Compute all measures of a mesh. The mesh must have at least one face."""
    part = connected_parts(mesh.faces, len(mesh.v_pos))[mesh.faces[:, 0].long()]
    area = torch.zeros(len(mesh.v_pos), dtype=torch.float64, device=mesh.v_pos.device)
    area.index_add_(0, part, face_cross(mesh.v_pos, mesh.faces).norm(dim=-1).double())
    return SurfaceQuality(
        roughness=roughness(mesh),
        non_manifold=non_manifold_share(mesh.faces, len(mesh.v_pos)),
        loose=(1 - area.max() / area.sum()).item(),
        parts=int(part.unique().numel()),
        faces=len(mesh.faces),
    )


def roughness(mesh: Mesh) -> float:
    """Return the mean angle in degrees between the normals of the two faces of an edge.

    The mean is weighted by edge length. Only edges with exactly two faces are counted. Faces with zero area
    are excluded.
    """
    low, high, face, count = _edges(mesh.faces, len(mesh.v_pos))
    first = (count == 2).nonzero()[:, 0]
    cross = face_cross(mesh.v_pos.double(), mesh.faces)
    one, other = cross[face[first]], cross[face[first + 1]]
    # Unlike the arc cosine, atan2 is accurate for small angles.
    angle = torch.atan2(torch.linalg.cross(one, other).norm(dim=-1), (one * other).sum(-1))
    length = (mesh.v_pos[low[first]] - mesh.v_pos[high[first]]).double().norm(dim=-1)
    length = length * ((one.norm(dim=-1) > 0) & (other.norm(dim=-1) > 0))
    return torch.rad2deg((length * angle).sum() / length.sum()).item()


def non_manifold_share(faces: Int[Tensor, "F 3"], vertices: int) -> float:
    """Return the share of edges with one face or more than two faces."""
    *_, count = _edges(faces, vertices)
    edges = count[count > 0]
    return (edges != 2).double().mean().item()


def connected_parts(faces: Int[Tensor, "F 3"], vertices: int) -> Int[Tensor, " V"]:
    """Return a label for each vertex by label propagation.

    All vertices of a connected part get the same label.
    """
    label = torch.arange(vertices, device=faces.device)
    corners = faces.long()
    while True:
        lowest = label[corners].amin(1, keepdim=True).expand(-1, 3)
        spread = label.scatter_reduce(0, corners.flatten(), lowest.flatten(), "amin")
        # Labels are vertex indices. Replacing each label by the label of the vertex with this index speeds up
        # convergence.
        spread = spread[spread]
        if torch.equal(spread, label):
            return label
        label = spread


def _edges(faces: Int[Tensor, "F 3"], vertices: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the result of `sorted_edges` and the number of faces of each edge.

    An edge occurs once for each of its faces. The number is at the first occurrence, and later ones have 0.
    """
    low, high, face = sorted_edges(faces, vertices)
    key = low * vertices + high
    _, inverse, sizes = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
    begins = torch.cat([inverse.new_ones(1), inverse.diff()]) > 0
    return low, high, face, torch.where(begins, sizes[inverse], 0)
