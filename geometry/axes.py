"""The axes of a mesh file that point up and to the front.

This program's frame has +y up and +z to the front, like glTF.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Axis = Literal["+x", "-x", "+y", "-y", "+z", "-z"]
UP: Axis = "+y"
FRONT: Axis = "+z"


def axis_vector(axis: Axis) -> Float[Tensor, "3"]:
    """Return the unit vector of a signed axis as a float64 tensor."""
    vector = torch.zeros(3, dtype=torch.float64)
    vector["xyz".index(axis[1])] = 1.0 if axis[0] == "+" else -1.0
    return vector


def frame_rotation(up: Axis, front: Axis) -> Float[Tensor, "3 3"] | None:
    """Return the rotation R from file coordinates to this program's frame, or None if it is the identity.

    A point p_file of the file becomes p = R · p_file.

    Raises:
        ValueError: if both axes are parallel.
    """
    if up[1] == front[1]:
        raise ValueError(
            f"base_mesh_up {up} and base_mesh_front {front} are parallel; they must be two different axes"
        )
    if (up, front) == (UP, FRONT):
        return None
    y, z = axis_vector(up), axis_vector(front)
    return torch.stack([torch.linalg.cross(y, z), y, z])


def rotated(vectors: Float[Tensor, "N 3"], rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "N 3"]:
    """Return rotation · v for each row v. The rotations of this module only swap and negate components, so
    the result is exact.
    """
    return vectors @ rotation.to(vectors).T
