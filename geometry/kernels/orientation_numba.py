"""Compiled propagation of orientation over faces. It is sequential, so it cannot be vectorised with torch."""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def propagate_orientation(neighbour, inconsistent, patch, flipped):
    """Number the connected patches of faces, and mark the faces whose orientation differs from that of the
    first face of their patch.

    neighbour [F,3]: the face on the other side of each edge, −1 if there is none. inconsistent [F,3]: whether
    both faces traverse the edge in the same direction, so that one of them must be flipped. patch [F]:
    receives the patch index of each face; it must be filled with −1. flipped [F]: receives whether the face
    must be flipped; it must be filled with False.
    """
    queue = np.empty(len(patch), dtype=np.int64)
    count = 0
    for seed in range(len(patch)):
        if patch[seed] >= 0:
            continue
        patch[seed] = count
        queue[0] = seed
        head, tail = 0, 1
        while head < tail:
            face = queue[head]
            head += 1
            for k in range(3):
                other = neighbour[face, k]
                if other >= 0 and patch[other] < 0:
                    patch[other] = count
                    flipped[other] = flipped[face] != inconsistent[face, k]
                    queue[tail] = other
                    tail += 1
        count += 1
