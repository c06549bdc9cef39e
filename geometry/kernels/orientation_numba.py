"""Compiled propagation of orientation over faces. The loop is sequential, so torch cannot vectorise it."""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def spread_orientation(neighbour, opposes, patch, turned):
    """Number the connected patches of faces, and orient each patch consistently with its first face.

    neighbour [F,3]: the face across each edge, -1 if there is none. opposes [F,3]: whether that face runs
    along the edge in the same direction, so one of the two must be flipped. patch [F] and turned [F] receive
    the result; patch is -1 at first.
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
                    turned[other] = turned[face] != opposes[face, k]
                    queue[tail] = other
                    tail += 1
        count += 1
