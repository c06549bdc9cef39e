"""Faces turned so that neighbours agree and closed surfaces face outwards, for meshes from anywhere."""

import logging

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from render.mesh import face_cross

logger = logging.getLogger(__name__)


def turned_over(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Bool[Tensor, " F"]:
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
    # Fewer than four faces close nothing.
    for number in (patch.bincount() >= 4).nonzero().flatten().tolist():
        mine = patch == number
        if is_closed(now[mine]) and signed_volume(v_pos, now[mine]) < 0:
            if not _within(v_pos, now[mine], now[~mine]):
                turned[mine] = ~turned[mine]
    return turned


def _rotation_free(faces: np.ndarray) -> np.ndarray:
    """Each face begun at its smallest vertex."""
    start = faces.argmin(-1)[:, None]
    return np.take_along_axis(faces, (start + np.arange(3)) % 3, axis=-1)


def _within(v_pos: Tensor, inner: Tensor, others: Tensor) -> bool:
    """Whether a surface lies inside what others enclose, told by the winding number at its first vertex."""
    import igl

    if len(others) == 0:
        return False
    point = v_pos[inner[:1, 0]].numpy()
    winding = igl.fast_winding_number(v_pos.numpy(), others.contiguous().numpy(), point)
    return bool(abs(np.asarray(winding).item()) > 0.5)


def signed_volume(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> float:
    """Volume enclosed by a closed mesh, negative where its faces point inwards."""
    corners = v_pos.double()[faces]
    corners = corners - corners.mean((0, 1))
    a, b, c = corners.unbind(1)
    return ((a * torch.linalg.cross(b - a, c - a, dim=-1)).sum() / 6).item()


def is_closed(faces: Int[Tensor, "F 3"]) -> bool:
    """Whether each directed edge occurs as often as its reverse: no boundary, neighbours turned alike."""
    start = faces.reshape(-1).long()
    end = faces.roll(-1, dims=1).reshape(-1).long()
    count = int(faces.max()) + 1
    forward, backward = start * count + end, end * count + start
    return torch.equal(forward.sort().values, backward.sort().values)
