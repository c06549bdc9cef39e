"""Check whether meshes are closed."""

import torch
from jaxtyping import Int
from torch import Tensor


def is_closed(faces: Int[Tensor, "F 3"]) -> bool:
    """Return whether the surface is consistently oriented and has no boundary.

    This is the case if each directed edge occurs as often as its reverse.
    """
    start = faces.reshape(-1).long()
    end = faces.roll(-1, dims=1).reshape(-1).long()
    count = int(faces.max()) + 1
    forward, backward = start * count + end, end * count + start
    return torch.equal(forward.sort().values, backward.sort().values)
