"""Loops of the projection unwrapper, compiled by numba: faces grown into charts that lie flat.

A chart is a set of faces joined by edges that all look to one side, projected along one direction onto a
plane of whole numbers. There every face has a positive area and no two faces share any, exactly: corners that
coincide in space coincide in the plane, and products of its coordinates (below 2²³) fit an int64.
"""

import numba
import numpy as np

kernel = numba.njit(nogil=True, cache=True)

# Steps of the plane's lattice along the mesh's longest side.
LATTICE = 2**22
# A projected face has at least this height, in steps: thinner ones would not outlive rounding to float32.
LEAST_HEIGHT = 16
# A face that would be compared with more than MOST_TESTS others, or lie in more than MOST_CELLS cells, stays
# out of the chart; so the time is bounded by the number of faces, whatever the mesh looks like.
MOST_TESTS = 256
MOST_CELLS = 64


@kernel
def plane_axes(x, y, z):
    """Two unit vectors that make a right-handed frame with the unit vector (x, y, z)."""
    # Duff et al. 2017, "Building an Orthonormal Basis, Revisited", listing 3.
    sign = 1.0 if z >= 0 else -1.0
    a = -1.0 / (sign + z)
    b = x * y * a
    return 1.0 + sign * x * x * a, sign * b, -sign * x, b, sign + y * y * a, -y


@kernel
def separated(a, b):
    """Whether an edge of triangle a [6] (x, y of three corners, counter-clockwise) has all of b outside."""
    for k in range(3):
        px, py = a[2 * k], a[2 * k + 1]
        ex, ey = a[(2 * k + 2) % 6] - px, a[(2 * k + 3) % 6] - py
        if (
            ex * (b[1] - py) - ey * (b[0] - px) <= 0
            and ex * (b[3] - py) - ey * (b[2] - px) <= 0
            and ex * (b[5] - py) - ey * (b[4] - px) <= 0
        ):
            return True
    return False


@kernel
def bucket(chart, column, row, mask):
    """Where a cell of a chart's plane lies in the hash table."""
    h = np.uint64(chart) * np.uint64(0x9E3779B97F4A7C15)
    h ^= np.uint64(column) * np.uint64(0xC2B2AE3D27D4EB4F)
    h ^= np.uint64(row) * np.uint64(0x165667B19E3779F9)
    h ^= h >> np.uint64(29)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(32)
    return np.int64(h & np.uint64(mask))


@kernel
def projected(positions, face, axes, out):
    """Fills out [6] with a face's corners in the plane; whether it is tall enough there, the right way up."""
    for k in range(3):
        x, y, z = positions[face[k], 0], positions[face[k], 1], positions[face[k], 2]
        out[2 * k] = np.int64(np.floor((x * axes[0] + y * axes[1] + z * axes[2]) * LATTICE + 0.5))
        out[2 * k + 1] = np.int64(np.floor((x * axes[3] + y * axes[4] + z * axes[5]) * LATTICE + 0.5))
    longest = max(
        max(out[0], out[2], out[4]) - min(out[0], out[2], out[4]),
        max(out[1], out[3], out[5]) - min(out[1], out[3], out[5]),
    )
    area = (out[2] - out[0]) * (out[5] - out[1]) - (out[3] - out[1]) * (out[4] - out[0])
    return area >= LEAST_HEIGHT * max(longest, 1)


@kernel
def grow(positions, faces, normals, directions, sizes, neighbours, seeds, least_cosine):
    """(chart [F], −1 for a face that is too thin in its plane; corners [F,6] in the plane; number of charts).

    positions [V,3] in [0,1]; normals [F,3] unit; directions [F,3] unit: along which a chart that starts at
    the face is projected; sizes [F]: about the extent of the faces around; neighbours [F,3] over the edges,
    −1 for none; seeds: the faces in the order in which they may start a chart. A face joins where its normal
    is within least_cosine of the chart's direction and where it covers no face that is already there.
    """
    count = len(faces)
    chart_of = np.full(count, -1, np.int64)
    corners = np.zeros((count, 6), np.int64)
    tried = np.full(count, -1, np.int64)
    queue = np.empty(count, np.int64)
    mask = 1
    while mask < 4 * count:
        mask *= 2
    head = np.full(mask, -1, np.int32)
    mask -= 1
    entry_next = np.empty(8 * count + MOST_CELLS, np.int32)
    entry_face = np.empty(8 * count + MOST_CELLS, np.int32)
    entries = 0
    axes, here = np.empty(6), np.empty(6, np.int64)
    charts = 0
    for seed in seeds:
        if chart_of[seed] >= 0:
            continue
        dx, dy, dz = directions[seed]
        axes[0], axes[1], axes[2], axes[3], axes[4], axes[5] = plane_axes(dx, dy, dz)
        cell = max(np.int64(sizes[seed] * LATTICE), 1)
        first, last = 0, 1
        queue[0] = seed
        tried[seed] = charts
        placed = 0
        while first < last:
            face = queue[first]
            first += 1
            if not projected(positions, faces[face], axes, here):
                continue
            left, right = min(here[0], here[2], here[4]) // cell, max(here[0], here[2], here[4]) // cell
            low, high = min(here[1], here[3], here[5]) // cell, max(here[1], here[3], here[5]) // cell
            cells = (right - left + 1) * (high - low + 1)
            if placed > 0 and cells > MOST_CELLS:
                continue
            free, tests = True, 0
            if placed > 0:
                for column in range(left, right + 1):
                    for row in range(low, high + 1):
                        entry = head[bucket(charts, column, row, mask)]
                        while entry >= 0 and free:
                            other = entry_face[entry]
                            if chart_of[other] == charts:
                                tests += 1
                                free = tests <= MOST_TESTS and (
                                    separated(here, corners[other]) or separated(corners[other], here)
                                )
                            entry = entry_next[entry]
                        if not free:
                            break
                    if not free:
                        break
            if not free:
                continue
            chart_of[face] = charts
            corners[face] = here
            placed += 1
            if cells > MOST_CELLS:
                break
            if entries + cells > len(entry_face):
                entry_next = np.concatenate((entry_next, np.empty_like(entry_next)))
                entry_face = np.concatenate((entry_face, np.empty_like(entry_face)))
            for column in range(left, right + 1):
                for row in range(low, high + 1):
                    place = bucket(charts, column, row, mask)
                    entry_face[entries] = face
                    entry_next[entries] = head[place]
                    head[place] = entries
                    entries += 1
            for k in range(3):
                other = neighbours[face, k]
                if other >= 0 and chart_of[other] < 0 and tried[other] != charts:
                    tried[other] = charts
                    cosine = normals[other, 0] * dx + normals[other, 1] * dy + normals[other, 2] * dz
                    if cosine >= least_cosine:
                        queue[last] = other
                        last += 1
        if placed > 0:
            charts += 1
    return chart_of, corners, charts
