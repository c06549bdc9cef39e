"""Normals of a mesh with moved vertices. Hard edges of the file stay hard."""

import numpy as np
from jaxtyping import Float, Int

# Two corners of a vertex share their new normal if their old normals differ by less than 2 degrees.
SAME = np.cos(np.radians(2))


def corner_normals(
    v_pos: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], old: Float[np.ndarray, "F 3 3"]
) -> tuple[Float[np.ndarray, "G 3"], Int[np.ndarray, "F 3"]]:
    """Return new unit normals, and the index of the normal of each corner.

    v_pos: the moved positions. Faces that meet at a position use the same vertex. old: the normals of the
    corners before the vertices were moved. If corners of the same vertex have nearly equal old normals, they
    share one new normal.
    The new normal is the direction of the area-weighted sum of the face normals of these corners. If this sum
    is 0, the old normal is kept.
    """
    a, b, c = (v_pos[faces[:, corner]] for corner in range(3))
    cross = np.repeat(np.cross(b - a, c - a), 3, axis=0)
    vertex, old = faces.reshape(-1), _unit(old.reshape(-1, 3))
    number = np.full(len(vertex), -1)
    normals: list[np.ndarray] = []
    count, pending = 0, np.arange(len(vertex))
    while len(pending):
        # Each iteration forms one group of corners for each vertex. The group contains the corners whose old
        # normals agree with the old normal of the first pending corner of the vertex.
        _, first, group = np.unique(vertex[pending], return_index=True, return_inverse=True)
        model = old[pending[first]]
        joins = np.vecdot(old[pending], model[group]) > SAME
        joins[first] = True
        total = np.zeros_like(model)
        np.add.at(total, group[joins], cross[pending[joins]])
        empty = np.linalg.norm(total, axis=1, keepdims=True) < 1e-20
        normals.append(_unit(np.where(empty, model, total)))
        number[pending[joins]] = count + group[joins]
        count, pending = count + len(model), pending[~joins]
    return np.concatenate([*normals, np.zeros((0, 3))]), number.reshape(-1, 3)


def _unit(vectors: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Return unit vectors. A vector of length 0 is not changed."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
