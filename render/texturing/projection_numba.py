"""numba kernels for unwrapping by projection. They combine faces into charts that are flat enough to be
projected.

A chart is a connected set of faces with similar normals, projected along one direction onto an integer
lattice. On the lattice, every face has a positive area and no two faces overlap. Both properties hold
exactly, because they are tested with integers: coordinates are below 2²³, so their products fit into an
int64, and corners at the same position have equal coordinates.
"""

import numpy as np

from render.kernels.numba_kernel import kernel

# The number of lattice steps along the longest side of the mesh.
LATTICE = 2**22
# The minimum height of a projected face in lattice steps. Thinner faces could lose their area or flip when
# they are rounded to float32.
MIN_HEIGHT = 16
# A face is not added to a chart if it must be compared with more than MAX_TESTS faces or touches more than
# MAX_CELLS cells of the hash table. These limits bound the time for any mesh.
MAX_TESTS = 256
MAX_CELLS = 64


@kernel
def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@kernel
def lattice_cell(size):
    """Return the side of the cells into which a chart's plane is divided for the hash table, in lattice
    steps.
    """
    return max(np.int64(size * LATTICE), 1)


@kernel
def plane_axes(normal, axes):
    """Fill axes [6] with two unit vectors that form a right-handed frame with the unit vector `normal`."""
    # The formula is from Duff et al. 2017, "Building an Orthonormal Basis, Revisited", listing 3.
    x, y, z = normal[0], normal[1], normal[2]
    sign = 1.0 if z >= 0 else -1.0
    a = -1.0 / (sign + z)
    axes[0], axes[1], axes[2] = 1.0 + sign * x * x * a, sign * x * y * a, -sign * x
    axes[3], axes[4], axes[5] = x * y * a, sign + y * y * a, -y


@kernel
def separated(a, b):
    """Return whether triangle b is completely on the outer side of an edge of triangle a.

    Both are [6]: x, y of three corners in counter-clockwise order.
    """
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
def hash_slot(chart, column, row, mask):
    """Return the slot in the hash table for a cell of a chart's plane."""
    h = np.uint64(chart) * np.uint64(0x9E3779B97F4A7C15)
    h ^= np.uint64(column) * np.uint64(0xC2B2AE3D27D4EB4F)
    h ^= np.uint64(row) * np.uint64(0x165667B19E3779F9)
    h ^= h >> np.uint64(29)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(32)
    return np.int64(h & np.uint64(mask))


@kernel
def project_face(positions, face, axes, out):
    """Write the corners of a face on the lattice to out [6]. Returns whether the projected face is neither
    too thin nor flipped.
    """
    for k in range(3):
        x, y, z = positions[face[k], 0], positions[face[k], 1], positions[face[k], 2]
        out[2 * k] = np.int64(np.floor((x * axes[0] + y * axes[1] + z * axes[2]) * LATTICE + 0.5))
        out[2 * k + 1] = np.int64(np.floor((x * axes[3] + y * axes[4] + z * axes[5]) * LATTICE + 0.5))
    longest = max(
        max(out[0], out[2], out[4]) - min(out[0], out[2], out[4]),
        max(out[1], out[3], out[5]) - min(out[1], out[3], out[5]),
    )
    area = (out[2] - out[0]) * (out[5] - out[1]) - (out[3] - out[1]) * (out[4] - out[0])
    return area >= MIN_HEIGHT * max(longest, 1)


@kernel
def cell_range(triangle, cell):
    """Return the first and last column, and the first and last row, of the cells that a projected face
    touches.
    """
    return (
        min(triangle[0], triangle[2], triangle[4]) // cell,
        max(triangle[0], triangle[2], triangle[4]) // cell,
        min(triangle[1], triangle[3], triangle[5]) // cell,
        max(triangle[1], triangle[3], triangle[5]) // cell,
    )


@kernel
def make_table(count):
    """Return an empty hash table from (chart, cell) to faces: list heads, links, faces, [length]."""
    slots = 1
    while slots < 4 * count:
        slots *= 2
    length = MAX_CELLS + 12 * count
    return (
        np.full(slots, -1, np.int32),
        np.empty(length, np.int32),
        np.empty(length, np.int32),
        np.zeros(1, np.int64),
    )


@kernel
def fits(table, chart, triangle, cell, chart_of, corners):
    """Return whether a projected face overlaps no face of a chart. If the face touches more than MAX_CELLS
    cells or needs more than MAX_TESTS tests, return False.
    """
    head, following, face_of, _ = table
    left, right, low, high = cell_range(triangle, cell)
    if (right - left + 1) * (high - low + 1) > MAX_CELLS:
        return False
    tests = 0
    for column in range(left, right + 1):
        for row in range(low, high + 1):
            entry = head[hash_slot(chart, column, row, len(head) - 1)]
            while entry >= 0:
                # The lists still contain faces that were moved to another chart. Such faces are skipped.
                if chart_of[face_of[entry]] == chart:
                    other = corners[face_of[entry]]
                    tests += 1
                    if tests > MAX_TESTS or not (separated(triangle, other) or separated(other, triangle)):
                        return False
                entry = following[entry]
    return True


@kernel
def insert_face(table, chart, face, triangle, cell):
    """Insert a face of a chart into the table. Returns False if the face is too large or the table full."""
    head, following, face_of, length = table
    left, right, low, high = cell_range(triangle, cell)
    cells = (right - left + 1) * (high - low + 1)
    if cells > MAX_CELLS or length[0] + cells > len(face_of):
        return False
    for column in range(left, right + 1):
        for row in range(low, high + 1):
            place, entry = hash_slot(chart, column, row, len(head) - 1), length[0]
            face_of[entry], following[entry], head[place] = face, head[place], entry
            length[0] += 1
    return True


@kernel
def make_charts(
    positions,
    faces,
    normals,
    directions,
    sizes,
    neighbours,
    seeds,
    min_cosine,
    max_fragment_faces,
    fragment_min_cosine,
):
    """Return the chart of each face [F], −1 if it is too thin to project, and its corners [F,6] on the
    lattice.

    positions [V,3]: in [0,1]. normals [F,3]: unit normals. directions [F,3]: unit projection direction of a
    chart that starts at the face. sizes [F]: mean extent of the faces around the face. neighbours [F,3]: the
    face across each edge, −1 if there is none. seeds: the faces in the order in which they may start a chart.
    A face is added to a chart if the cosine between its normal and the chart's direction is at least
    min_cosine. After all charts are complete, faces of charts with at most max_fragment_faces faces are moved
    to larger charts if the cosine between the face's normal and the larger chart's direction is at least
    fragment_min_cosine.
    """
    count = len(faces)
    mesh = positions, faces, normals, directions, sizes, neighbours
    chart_of, corners = np.full(count, -1, np.int64), np.zeros((count, 6), np.int64)
    seed_of, population = np.empty(count, np.int64), np.zeros(count, np.int64)
    charts, table = (chart_of, corners, seed_of, population), make_table(count)
    grow(mesh, charts, table, seeds, min_cosine)
    merge_fragments(mesh, charts, table, max_fragment_faces, fragment_min_cosine)
    return chart_of, corners


@kernel
def grow(mesh, charts, table, seeds, min_cosine):
    """Grow charts breadth-first from the seeds, one after the other, until every seed that can be projected
    has a chart.
    """
    positions, faces, normals, directions, sizes, neighbours = mesh
    chart_of, corners, seed_of, population = charts
    tried, queue = np.full(len(faces), -1, np.int64), np.empty(len(faces), np.int64)
    axes, triangle = np.empty(6), np.empty(6, np.int64)
    chart = 0
    for seed in seeds:
        if chart_of[seed] >= 0:
            continue
        direction, cell = directions[seed], lattice_cell(sizes[seed])
        plane_axes(direction, axes)
        first, last, queue[0], tried[seed] = 0, 1, seed, seed
        while first < last:
            face = queue[first]
            first += 1
            if not project_face(positions, faces[face], axes, triangle):
                continue
            if face != seed and not fits(table, chart, triangle, cell, chart_of, corners):
                continue
            inserted = insert_face(table, chart, face, triangle, cell)
            # A face that does not fit into the table is skipped, and it starts a new chart later.
            if not inserted and face != seed:
                continue
            chart_of[face], corners[face] = chart, triangle
            population[chart] += 1
            if not inserted:
                break
            for other in neighbours[face]:
                if other >= 0 and chart_of[other] < 0 and tried[other] != seed:
                    tried[other] = seed
                    if dot(normals[other], direction) >= min_cosine:
                        queue[last] = other
                        last += 1
        if population[chart] > 0:
            seed_of[chart] = seed
            chart += 1


@kernel
def merge_fragments(mesh, charts, table, max_fragment_faces, fragment_min_cosine):
    """Move faces of charts with at most `max_fragment_faces` faces to larger neighbouring charts if they fit.

    Without this step, about half of the charts would be such fragments between larger charts.
    """
    positions, faces, normals, directions, sizes, neighbours = mesh
    chart_of, corners, seed_of, population = charts
    axes, triangle = np.empty(6), np.empty(6, np.int64)
    first, last, queue = 0, 0, np.empty(4 * len(faces), np.int64)
    for face in range(len(faces)):
        if chart_of[face] >= 0 and population[chart_of[face]] <= max_fragment_faces:
            queue[last] = face
            last += 1
    while first < last:
        face = queue[first]
        first += 1
        for neighbour in neighbours[face]:
            own, chart = chart_of[face], chart_of[neighbour]
            if (
                neighbour < 0
                or chart < 0
                or population[own] > max_fragment_faces
                or population[chart] <= population[own]
            ):
                continue
            direction, cell = directions[seed_of[chart]], lattice_cell(sizes[seed_of[chart]])
            plane_axes(direction, axes)
            if (
                dot(normals[face], direction) < fragment_min_cosine
                or not project_face(positions, faces[face], axes, triangle)
                or not fits(table, chart, triangle, cell, chart_of, corners)
                or not insert_face(table, chart, face, triangle, cell)
            ):
                continue
            population[own] -= 1
            population[chart] += 1
            chart_of[face], corners[face] = chart, triangle
            # The neighbours of the moved face can now be moved to the same chart.
            for other in neighbours[face]:
                if other >= 0 and chart_of[other] >= 0 and last < len(queue):
                    queue[last] = other
                    last += 1
