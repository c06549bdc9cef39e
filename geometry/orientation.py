"""Faces turned so that neighbours agree and closed surfaces face outwards, for meshes from anywhere."""

import logging

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from render.mesh import face_cross

logger = logging.getLogger(__name__)


def flipped_faces(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Bool[Tensor, " F"]:
    """The faces that must be turned for a surface that is oriented throughout and seen from outside.

    Within a patch, joined by edges of two faces, all follow the way that most of its area has. A closed
    patch that then encloses a negative volume is turned as a whole, unless it lies within another one: that
    is the inside of a hollow body.
    """
    import igl

    numbers = faces.cpu().numpy().astype(np.int64)
    agreed, patch = igl.bfs_orient(numbers)
    turned = torch.from_numpy((_rotation_free(agreed) != _rotation_free(numbers)).any(-1))
    patch = torch.from_numpy(patch.astype(np.int64).reshape(-1))
    v_pos, faces = v_pos.cpu().double(), faces.cpu().long()
    area = face_cross(v_pos, faces).norm(dim=-1)
    count = int(patch.max()) + 1
    balance = torch.zeros(count, dtype=area.dtype).index_add(0, patch, torch.where(turned, -area, area))
    turned ^= balance[patch] < 0
    now = torch.where(turned[:, None], faces.flip(-1), faces)
    inverted = _inverted(v_pos, now, patch, count)
    hollows = _enclosed(v_pos, now, patch, inverted)
    return turned ^ torch.isin(patch, inverted[~hollows])


def _rotation_free(faces: np.ndarray) -> np.ndarray:
    """Each face begun at its smallest vertex."""
    start = faces.argmin(-1)[:, None]
    return np.take_along_axis(faces, (start + np.arange(3)) % 3, axis=-1)


def _inverted(
    v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], patch: Int[Tensor, " F"], count: int
) -> Int[Tensor, " N"]:
    """The closed patches that enclose a negative volume."""
    start, end = faces.reshape(-1), faces.roll(-1, dims=1).reshape(-1)
    low, high, owner = torch.minimum(start, end), torch.maximum(start, end), patch.repeat_interleave(3)
    # Patches may share an edge. Numbered in two turns, since one number for all three would overflow.
    _, edge = (low * len(v_pos) + high).unique(return_inverse=True)
    edges, number = (edge * count + owner).unique(return_inverse=True)
    # Each directed edge of a closed surface occurs as often as its reverse.
    surplus = torch.zeros(len(edges), dtype=torch.long).index_add(0, number, (end - start).sign())
    open_edges = torch.zeros(count, dtype=torch.long).index_add(0, edges % count, surplus.abs())
    a, b, c = v_pos[faces].unbind(1)
    volume = torch.zeros(count, dtype=v_pos.dtype).index_add(
        0, patch, (a * torch.linalg.cross(b, c, dim=-1)).sum(-1)
    )
    # Fewer than four faces close nothing.
    return ((open_edges == 0) & (volume < 0) & (patch.bincount(minlength=count) >= 4)).nonzero()[:, 0]


def _enclosed(
    v_pos: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    patch: Int[Tensor, " F"],
    closed: Int[Tensor, " N"],
) -> Bool[Tensor, " N"]:
    """Which of these closed patches lie inside what the rest of the surface encloses.

    Asked for all at once, by the winding number just beyond each one's outermost vertex along x: there the
    patch itself does not count.
    """
    import igl

    if len(closed) == 0:
        return torch.zeros(0, dtype=torch.bool)
    x = v_pos[faces, 0].amax(1)
    farthest = x.new_full((int(patch.max()) + 1,), -torch.inf).scatter_reduce(0, patch, x, "amax")
    outermost = torch.zeros(len(farthest), dtype=torch.long)
    at_the_end = (x == farthest[patch]).nonzero()[:, 0]
    outermost[patch[at_the_end]] = at_the_end
    corner = v_pos[faces[outermost[closed]]]
    points = corner[torch.arange(len(closed)), corner[:, :, 0].argmax(1)]
    points[:, 0] += 1e-6 * float((v_pos.amax(0) - v_pos.amin(0)).max())
    winding = np.asarray(igl.fast_winding_number(v_pos.numpy(), faces.contiguous().numpy(), points.numpy()))
    return torch.from_numpy(np.abs(winding.reshape(-1)) > 0.5)


def signed_volume(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> float:
    """Volume enclosed by a closed mesh, negative where its faces point inwards."""
    corners = v_pos.double()[faces]
    corners = corners - corners.mean((0, 1))
    a, b, c = corners.unbind(1)
    return ((a * torch.linalg.cross(b - a, c - a, dim=-1)).sum() / 6).item()
