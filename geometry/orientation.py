"""Consistent orientation of the faces of any mesh. Closed surfaces are oriented outwards."""

import logging

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from render.mesh import face_cross

logger = logging.getLogger(__name__)


def flipped_faces(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Bool[Tensor, " F"]:
    """Return a mask of the faces to flip so that all faces are consistently oriented and point outwards.

    A patch is a set of faces that are connected by edges with exactly two faces. All faces of a patch get the
    orientation that most of the patch's area has. After this, each closed patch with negative volume is
    flipped. A patch inside another patch is not flipped, because it bounds a cavity.
    """
    patch, flipped = (torch.from_numpy(part) for part in _agreed(faces.cpu().numpy().astype(np.int64)))
    v_pos, faces = v_pos.cpu().double(), faces.cpu().long()
    area = face_cross(v_pos, faces).norm(dim=-1)
    count = int(patch.max()) + 1
    balance = torch.zeros(count, dtype=area.dtype).index_add(0, patch, torch.where(flipped, -area, area))
    flipped ^= balance[patch] < 0
    now = torch.where(flipped[:, None], faces.flip(-1), faces)
    inverted = _inverted(v_pos, now, patch, count)
    hollows = _enclosed(v_pos, now, patch, inverted)
    return flipped ^ torch.isin(patch, inverted[~hollows])


def _agreed(faces: Int[np.ndarray, "F 3"]) -> tuple[Int[np.ndarray, " F"], Bool[np.ndarray, " F"]]:
    """Return the patch index of each face, and which faces must be flipped to agree with the patch's first
    face.

    Memory is linear in the number of faces. Edges with more than two faces do not connect faces. The compiled
    function is used only if some faces disagree, because loading numba takes most of a second.
    """
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    edge = np.minimum(start, end) * (int(faces.max()) + 1) + np.maximum(start, end)
    order = np.argsort(edge, kind="stable")
    _, first, count = np.unique(edge[order], return_index=True, return_counts=True)
    one, other = order[first[count == 2]], order[first[count == 2] + 1]
    opposed = start[one] == start[other]
    if not opposed.any():
        return _patches(len(faces), one // 3, other // 3), np.zeros(len(faces), dtype=bool)
    from geometry.kernels.orientation_numba import propagate_orientation

    neighbour, inconsistent = np.full(len(edge), -1), np.zeros(len(edge), dtype=bool)
    neighbour[one], neighbour[other] = other // 3, one // 3
    inconsistent[one] = inconsistent[other] = opposed
    patch, flipped = np.full(len(faces), -1), np.zeros(len(faces), dtype=bool)
    propagate_orientation(neighbour.reshape(-1, 3), inconsistent.reshape(-1, 3), patch, flipped)
    return patch, flipped


def _patches(count: int, one: Int[np.ndarray, " P"], other: Int[np.ndarray, " P"]) -> Int[np.ndarray, " F"]:
    """Return the patch index of each of `count` faces. Patches are numbered by their first face.

    one, other: pairs of connected faces.
    """
    pairs = torch.from_numpy(np.concatenate([one, other]))
    # The label of a face is a face of its patch with a smaller or equal index. In every round, the label of
    # each patch's part decreases to the smallest adjacent label.
    label = torch.arange(count)
    while True:
        near = label[pairs].view(2, -1)
        smallest = near.amin(0)
        if bool((near == smallest).all()):
            return np.unique(label.numpy(), return_inverse=True)[1]
        label = label.scatter_reduce(0, near.reshape(-1), smallest.repeat(2), "amin")
        while not torch.equal(followed := label[label], label):
            label = followed


def _inverted(
    v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], patch: Int[Tensor, " F"], count: int
) -> Int[Tensor, " N"]:
    """Return the indices of the closed patches that enclose a negative volume."""
    start, end = faces.reshape(-1), faces.roll(-1, dims=1).reshape(-1)
    low, high, owner = torch.minimum(start, end), torch.maximum(start, end), patch.repeat_interleave(3)
    # Patches may share an edge, so the key of an edge includes the patch. unique is called twice, because one
    # key from both vertices and the patch would overflow.
    _, edge = (low * len(v_pos) + high).unique(return_inverse=True)
    edges, number = (edge * count + owner).unique(return_inverse=True)
    # In a closed surface, each directed edge occurs as often as the reversed edge, so a surplus that is not 0
    # means that the patch is open.
    surplus = torch.zeros(len(edges), dtype=torch.long).index_add(0, number, (end - start).sign())
    open_edges = torch.zeros(count, dtype=torch.long).index_add(0, edges % count, surplus.abs())
    a, b, c = v_pos[faces].unbind(1)
    volume = torch.zeros(count, dtype=v_pos.dtype).index_add(
        0, patch, (a * torch.linalg.cross(b, c, dim=-1)).sum(-1)
    )
    # A closed surface has at least four faces, so smaller patches do not count as closed.
    return ((open_edges == 0) & (volume < 0) & (patch.bincount(minlength=count) >= 4)).nonzero()[:, 0]


def _enclosed(
    v_pos: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    patch: Int[Tensor, " F"],
    closed: Int[Tensor, " N"],
) -> Bool[Tensor, " N"]:
    """Return which of the patches `closed` lie inside the rest of the surface.

    For each patch, the winding number is evaluated at a point just outside of the patch, next to its vertex
    with the largest x. The patch itself contributes 0 to the winding number at this point.
    """
    if len(closed) == 0:
        return torch.zeros(0, dtype=torch.bool)
    import igl

    x = v_pos[faces, 0].amax(1)
    farthest = x.new_full((int(patch.max()) + 1,), -torch.inf).scatter_reduce(0, patch, x, "amax")
    outermost = torch.zeros(len(farthest), dtype=torch.long)
    extremal_faces = (x == farthest[patch]).nonzero()[:, 0]
    outermost[patch[extremal_faces]] = extremal_faces
    corner = v_pos[faces[outermost[closed]]]
    points = corner[torch.arange(len(closed)), corner[:, :, 0].argmax(1)]
    points[:, 0] += 1e-6 * float((v_pos.amax(0) - v_pos.amin(0)).max())
    winding = np.asarray(igl.fast_winding_number(v_pos.numpy(), faces.contiguous().numpy(), points.numpy()))
    return torch.from_numpy(np.abs(winding.reshape(-1)) > 0.5)


def signed_volume(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> float:
    """Return the volume inside a closed mesh. It is negative if the faces point inwards."""
    corners = v_pos.double()[faces]
    corners = corners - corners.mean((0, 1))
    a, b, c = corners.unbind(1)
    return ((a * torch.linalg.cross(b - a, c - a, dim=-1)).sum() / 6).item()
