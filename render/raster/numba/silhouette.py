"""numba versions of two loops of render/raster/silhouette.py. One finds the edges of a mesh, and the other
finds the pixel pairs that silhouettes cross.
"""

import math

import numpy as np

from render.kernels.numba_kernel import kernel
from render.raster.numba.triangles import cross


@kernel
def build_edges(faces, vertex_count):
    """Return the fields of silhouette.Edges in the same order. A counting sort orders edges by smaller
    vertex.
    """
    begin = np.zeros(vertex_count + 1, np.int64)
    for corner in range(3):
        for face in range(faces.shape[0]):
            a, b = faces[face, (corner + 1) % 3], faces[face, (corner + 2) % 3]
            if a != b:
                begin[min(a, b) + 1] += 1
    begin = np.cumsum(begin)
    larger, opposite = np.empty(begin[-1], np.int64), np.empty(begin[-1], np.int64)
    fill = begin.copy()
    for corner in range(3):
        for face in range(faces.shape[0]):
            a, b = faces[face, (corner + 1) % 3], faces[face, (corner + 2) % 3]
            if a == b:
                continue
            # The edges of a vertex are sorted by their larger vertex. Insertion sort is fast, because a
            # vertex has few edges.
            low, high = min(a, b), max(a, b)
            slot = fill[low]
            fill[low] += 1
            while slot > begin[low] and larger[slot - 1] > high:
                larger[slot], opposite[slot] = larger[slot - 1], opposite[slot - 1]
                slot -= 1
            larger[slot], opposite[slot] = high, faces[face, corner]
    vertices, start = np.empty((begin[-1], 2), np.int64), np.empty(begin[-1] + 1, np.int64)
    count = 0
    for low in range(vertex_count):
        for slot in range(begin[low], begin[low + 1]):
            if slot == begin[low] or larger[slot] != larger[slot - 1]:
                vertices[count, 0], vertices[count, 1], start[count] = low, larger[slot], slot
                count += 1
    start[count] = begin[-1]
    return vertices[:count], start[: count + 1], opposite


@kernel
def silhouette_side(clip, nx, ny, nw, opposite):
    """Return the side (±1) of the line n of an edge on which all faces of the edge lie, or 0 if there is no
    such side. Faces seen exactly edge-on are ignored.
    """
    lowest, highest = 0, 0
    for vertex in opposite:
        side = nx * np.float64(clip[vertex, 0]) + ny * np.float64(clip[vertex, 1])
        side += nw * np.float64(clip[vertex, 3])
        if side > 0:
            highest = 1
        elif side < 0:
            lowest = -1
    return lowest + highest


@kernel
def visible_segment(a, b, height, width):
    """Return x, y (in pixels) and z/w of both end points, and whether the segment is visible. The segment is
    first clipped at the near plane z = −w.
    """
    ax, ay, az, aw = np.float64(a[0]), np.float64(a[1]), np.float64(a[2]), np.float64(a[3])
    bx, by, bz, bw = np.float64(b[0]), np.float64(b[1]), np.float64(b[2]), np.float64(b[3])
    above_a, above_b = az + aw, bz + bw
    if above_a < 0 and above_b < 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False
    if above_a < 0 or above_b < 0:
        fraction = above_a / (above_a - above_b)
        cx, cy = ax + fraction * (bx - ax), ay + fraction * (by - ay)
        cz, cw = az + fraction * (bz - az), aw + fraction * (bw - aw)
        if above_a < 0:
            ax, ay, az, aw = cx, cy, cz, cw
        else:
            bx, by, bz, bw = cx, cy, cz, cw
    if not (aw > 0 and bw > 0):
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False
    ax, ay = (ax / aw + 1) * width / 2, (ay / aw + 1) * height / 2
    bx, by = (bx / bw + 1) * width / 2, (by / bw + 1) * height / 2
    finite = math.isfinite(ax + ay + az / aw + bx + by + bz / bw)
    return ax, ay, az / aw, bx, by, bz / bw, finite


@kernel
def find_pairs(clip, rast, vertices, start, opposite):
    """Return rows (inner, outer, vertex a, vertex b, axis) for one view; see silhouette.find_pairs."""
    height, width = rast.shape[0], rast.shape[1]
    outermost = np.full((2, height * width), -1.0)
    winner = np.empty((2, height * width), np.int64)
    flipped = np.empty((2, height * width), np.bool_)
    for edge in range(vertices.shape[0]):
        i, j = vertices[edge, 0], vertices[edge, 1]
        nx, ny, nw = cross(
            np.float64(clip[i, 0]),
            np.float64(clip[i, 1]),
            np.float64(clip[i, 3]),
            np.float64(clip[j, 0]),
            np.float64(clip[j, 1]),
            np.float64(clip[j, 3]),
        )
        side = silhouette_side(clip, nx, ny, nw, opposite[start[edge] : start[edge + 1]])
        if side == 0:
            continue
        ax, ay, az, bx, by, bz, visible = visible_segment(clip[i], clip[j], height, width)
        if not visible:
            continue
        if abs(bx - ax) > abs(by - ay):
            axis, begin, end, along, across = 1, ax, bx, width, height
            n_along, n_across = nx, ny
        else:
            axis, begin, end, along, across = 0, ay, by, height, width
            n_along, n_across = ny, nx
        # The interval of lines is half-open, so that a line of pixel centres through the common vertex of two
        # consecutive edges crosses only one of the edges.
        first = int(min(max(np.ceil(min(begin, end) - 0.5), 0.0), float(along)))
        stop = int(max(min(np.ceil(max(begin, end) - 0.5), float(along)), 0.0))
        inner_is_second = side * n_across > 0
        for line in range(first, stop):
            centre = (line + 0.5) * 2 / along - 1
            position = (1 - (n_along * centre + nw) / n_across) * across / 2
            cell = np.floor(position - 0.5)
            if not (cell >= 0 and cell < across - 1):
                continue
            pixel = line * width + int(cell) if axis == 0 else int(cell) * width + line
            neighbour = pixel + 1 if axis == 0 else pixel + width
            inner, outer = (neighbour, pixel) if inner_is_second else (pixel, neighbour)
            depth = az + (line + 0.5 - begin) / (end - begin) * (bz - az)
            if not is_edge_visible(rast, inner, outer, depth):
                continue
            distance = position - 0.5 - cell
            distance = 1 - distance if inner_is_second else distance
            if distance > outermost[axis, pixel]:
                outermost[axis, pixel] = distance
                winner[axis, pixel] = edge
                flipped[axis, pixel] = inner_is_second
    return collect_pairs(outermost, winner, flipped, vertices, width)


@kernel
def is_edge_visible(rast, inner, outer, depth):
    """Return whether an edge at depth z/w is visible between two pixels; see silhouette.is_edge_visible."""
    width = rast.shape[1]
    z_inner, z_outer = np.inf, np.inf
    if rast[inner // width, inner % width, 3] > 0:
        z_inner = np.float64(rast[inner // width, inner % width, 2])
    if rast[outer // width, outer % width, 3] > 0:
        z_outer = np.float64(rast[outer // width, outer % width, 2])
    return z_inner < z_outer and depth < z_outer and abs(depth) <= 1


@kernel
def collect_pairs(outermost, winner, flipped, vertices, width):
    """Return the crossed pairs, sorted by axis and first pixel."""
    count = 0
    for axis in range(2):
        for pixel in range(outermost.shape[1]):
            count += outermost[axis, pixel] >= 0
    rows = np.empty((count, 5), np.int64)
    row = 0
    for axis in range(2):
        for pixel in range(outermost.shape[1]):
            if outermost[axis, pixel] >= 0:
                neighbour = pixel + 1 if axis == 0 else pixel + width
                inner_is_second = flipped[axis, pixel]
                rows[row, 0] = neighbour if inner_is_second else pixel
                rows[row, 1] = pixel if inner_is_second else neighbour
                rows[row, 2] = vertices[winner[axis, pixel], 0]
                rows[row, 3] = vertices[winner[axis, pixel], 1]
                rows[row, 4] = axis
                row += 1
    return rows
