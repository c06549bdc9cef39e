"""Loops of the CPU rasteriser, compiled by numba: one view a call, float64 inside, no lock on the interpreter.

The formulas are those of reference.py and silhouette.py, written out; the tests hold the two together. `parallel=True`
is avoided on purpose: its OpenMP workers fight with torch's, so that the caller spreads views over threads instead.
"""

import math

import numba
import numpy as np

kernel = numba.njit(nogil=True, cache=True)


@kernel
def cross(ax, ay, aw, bx, by, bw):
    """a × b over (x, y, w)."""
    return ay * bw - aw * by, aw * bx - ax * bw, ax * by - ay * bx


@kernel
def owns_its_points(x, y, w):
    """Top-left rule: true for exactly one of the inward normals n and −n."""
    return x > 0 or (x == 0 and (y > 0 or (y == 0 and w > 0)))


@kernel
def pixel_range(p, q, r, size):
    """First and last index of the pixel centres between the least and the greatest of three clip coordinates /w."""
    low = (min(p, q, r) + 1) * size / 2 - 0.5
    high = (max(p, q, r) + 1) * size / 2 - 0.5
    # The slack keeps a centre exactly on the outline in its box; clamped before the cast, which cannot hold 1e30.
    first = np.ceil(min(max(low - 1e-6, 0.0), float(size)))
    last = np.floor(max(min(high + 1e-6, size - 1.0), -1.0))
    return int(first), int(last)


@kernel
def rasterize(clip, faces, rast):
    """Fills rast [H,W,4], zero at the start, with (u, v, z/w, face + 1) of the nearest face."""
    height, width = rast.shape[0], rast.shape[1]
    depth = np.full((height, width), np.inf)
    for face in range(faces.shape[0]):
        i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, az, aw = np.float64(clip[i, 0]), np.float64(clip[i, 1]), clip[i, 2], np.float64(clip[i, 3])
        bx, by, bz, bw = np.float64(clip[j, 0]), np.float64(clip[j, 1]), clip[j, 2], np.float64(clip[j, 3])
        cx, cy, cz, cw = np.float64(clip[k, 0]), np.float64(clip[k, 1]), clip[k, 2], np.float64(clip[k, 3])
        if not (aw > 0 or bw > 0 or cw > 0):
            continue
        n0x, n0y, n0w = cross(bx, by, bw, cx, cy, cw)
        det = ax * n0x + ay * n0y + aw * n0w
        if det == 0 or not math.isfinite(det):
            continue
        # A triangle that reaches behind the camera may project anywhere.
        left, right, top, bottom = 0, width - 1, 0, height - 1
        if aw > 0 and bw > 0 and cw > 0:
            left, right = pixel_range(ax / aw, bx / bw, cx / cw, width)
            top, bottom = pixel_range(ay / aw, by / bw, cy / cw, height)
            if left > right or top > bottom:
                continue
        n1x, n1y, n1w = cross(cx, cy, cw, ax, ay, aw)
        n2x, n2y, n2w = cross(ax, ay, aw, bx, by, bw)
        if det < 0:
            n0x, n0y, n0w = -n0x, -n0y, -n0w
            n1x, n1y, n1w = -n1x, -n1y, -n1w
            n2x, n2y, n2w = -n2x, -n2y, -n2w
            det = -det
        keep0, keep1, keep2 = (
            owns_its_points(n0x, n0y, n0w),
            owns_its_points(n1x, n1y, n1w),
            owns_its_points(n2x, n2y, n2w),
        )
        for row in range(top, bottom + 1):
            y = (row + 0.5) * 2 / height - 1
            for column in range(left, right + 1):
                x = (column + 0.5) * 2 / width - 1
                e0 = n0x * x + n0y * y + n0w
                if not (e0 > 0 or (e0 == 0 and keep0)):
                    continue
                e1 = n1x * x + n1y * y + n1w
                if not (e1 > 0 or (e1 == 0 and keep1)):
                    continue
                e2 = n2x * x + n2y * y + n2w
                if not (e2 > 0 or (e2 == 0 and keep2)):
                    continue
                total = e0 + e1 + e2
                z = (e0 * az + e1 * bz + e2 * cz) / det
                if total > 0 and abs(z) <= 1 and z < depth[row, column]:
                    depth[row, column] = z
                    rast[row, column, 0] = e0 / total
                    rast[row, column, 1] = e1 / total
                    rast[row, column, 2] = z
                    rast[row, column, 3] = face + 1


@kernel
def rasterize_backward(clip, faces, rast, grad_rast, grad_clip):
    """Adds to grad_clip [V,4] what the gradient of u, v asks of x, y, w of the corners.

    With eᵢ = p · (vᵢ₊₁ × vᵢ₊₂), u = e₀/Σe, v = e₁/Σe: ∂u/∂eᵢ = (δᵢ₀ − u)/Σe, and ∂L/∂v₀ = p × (g₁ v₂ − g₂ v₁) and so
    on in a circle, where gᵢ = ∂L/∂eᵢ.
    """
    height, width = rast.shape[0], rast.shape[1]
    for row in range(height):
        y = (row + 0.5) * 2 / height - 1
        for column in range(width):
            grad_u, grad_v = np.float64(grad_rast[row, column, 0]), np.float64(grad_rast[row, column, 1])
            face = int(rast[row, column, 3]) - 1
            if face < 0 or (grad_u == 0 and grad_v == 0):
                continue
            x = (column + 0.5) * 2 / width - 1
            i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
            ax, ay, aw = np.float64(clip[i, 0]), np.float64(clip[i, 1]), np.float64(clip[i, 3])
            bx, by, bw = np.float64(clip[j, 0]), np.float64(clip[j, 1]), np.float64(clip[j, 3])
            cx, cy, cw = np.float64(clip[k, 0]), np.float64(clip[k, 1]), np.float64(clip[k, 3])
            nx, ny, nw = cross(bx, by, bw, cx, cy, cw)
            e0 = nx * x + ny * y + nw
            nx, ny, nw = cross(cx, cy, cw, ax, ay, aw)
            e1 = nx * x + ny * y + nw
            nx, ny, nw = cross(ax, ay, aw, bx, by, bw)
            total = e0 + e1 + nx * x + ny * y + nw
            u, v = e0 / total, e1 / total
            mean = grad_u * u + grad_v * v
            g0, g1, g2 = (grad_u - mean) / total, (grad_v - mean) / total, -mean / total
            gx, gy, gw = cross(x, y, 1.0, g1 * cx - g2 * bx, g1 * cy - g2 * by, g1 * cw - g2 * bw)
            grad_clip[i, 0] += gx
            grad_clip[i, 1] += gy
            grad_clip[i, 3] += gw
            gx, gy, gw = cross(x, y, 1.0, g2 * ax - g0 * cx, g2 * ay - g0 * cy, g2 * aw - g0 * cw)
            grad_clip[j, 0] += gx
            grad_clip[j, 1] += gy
            grad_clip[j, 3] += gw
            gx, gy, gw = cross(x, y, 1.0, g0 * bx - g1 * ax, g0 * by - g1 * ay, g0 * bw - g1 * aw)
            grad_clip[k, 0] += gx
            grad_clip[k, 1] += gy
            grad_clip[k, 3] += gw


@kernel
def interpolate(attributes, rast, faces, out):
    """Fills out [H,W,C], zero at the start, with u·a0 + v·a1 + (1 − u − v)·a2."""
    for row in range(rast.shape[0]):
        for column in range(rast.shape[1]):
            face = int(rast[row, column, 3]) - 1
            if face < 0:
                continue
            u, v = rast[row, column, 0], rast[row, column, 1]
            rest = 1 - u - v
            i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
            for c in range(out.shape[2]):
                out[row, column, c] = u * attributes[i, c] + v * attributes[j, c] + rest * attributes[k, c]


@kernel
def interpolate_backward(attributes, rast, faces, grad_out, grad_attributes, grad_rast):
    """Adds to grad_attributes [V,C] and sets u, v of grad_rast [H,W,4], both zero at the start."""
    for row in range(rast.shape[0]):
        for column in range(rast.shape[1]):
            face = int(rast[row, column, 3]) - 1
            if face < 0:
                continue
            u, v = rast[row, column, 0], rast[row, column, 1]
            rest = 1 - u - v
            i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
            grad_u, grad_v = 0.0, 0.0
            for c in range(grad_out.shape[2]):
                grad = grad_out[row, column, c]
                grad_u += grad * (attributes[i, c] - attributes[k, c])
                grad_v += grad * (attributes[j, c] - attributes[k, c])
                grad_attributes[i, c] += u * grad
                grad_attributes[j, c] += v * grad
                grad_attributes[k, c] += rest * grad
            grad_rast[row, column, 0] = grad_u
            grad_rast[row, column, 1] = grad_v


@kernel
def silhouette_side(clip, nx, ny, nw, opposite):
    """±1, the side of the edge with line n on which all faces lie; 0 where it is no silhouette."""
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
    """Ends in pixels (x, y) and z/w after cutting at the near plane z = −w, and whether anything is left."""
    ax, ay, az, aw = np.float64(a[0]), np.float64(a[1]), np.float64(a[2]), np.float64(a[3])
    bx, by, bz, bw = np.float64(b[0]), np.float64(b[1]), np.float64(b[2]), np.float64(b[3])
    above_a, above_b = az + aw, bz + bw
    if above_a < 0 and above_b < 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False
    if above_a < 0 or above_b < 0:
        share = above_a / (above_a - above_b)
        cx, cy = ax + share * (bx - ax), ay + share * (by - ay)
        cz, cw = az + share * (bz - az), aw + share * (bw - aw)
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
    """Rows (inner, outer, vertex a, vertex b, axis) of one view, as silhouette.find_pairs gives them."""
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
        ax, ay, az, bx, by, bz, ahead = visible_segment(clip[i], clip[j], height, width)
        if not ahead:
            continue
        if abs(bx - ax) > abs(by - ay):
            axis, begin, end, along, across = 1, ax, bx, width, height
            n_along, n_across = nx, ny
        else:
            axis, begin, end, along, across = 0, ay, by, height, width
            n_along, n_across = ny, nx
        # Half-open, so that a line of centres through the vertex between two edges is crossed once.
        first = int(min(max(np.ceil(min(begin, end) - 0.5), 0.0), float(along)))
        stop = int(max(min(np.ceil(max(begin, end) - 0.5), float(along)), 0.0))
        beyond = side * n_across > 0
        for line in range(first, stop):
            centre = (line + 0.5) * 2 / along - 1
            place = (1 - (n_along * centre + nw) / n_across) * across / 2
            cell = np.floor(place - 0.5)
            if not (cell >= 0 and cell < across - 1):
                continue
            near = line * width + int(cell) if axis == 0 else int(cell) * width + line
            far = near + 1 if axis == 0 else near + width
            inner, outer = (far, near) if beyond else (near, far)
            depth = az + (line + 0.5 - begin) / (end - begin) * (bz - az)
            if not is_seen(rast, inner, outer, depth):
                continue
            distance = place - 0.5 - cell
            distance = 1 - distance if beyond else distance
            if distance > outermost[axis, near]:
                outermost[axis, near] = distance
                winner[axis, near] = edge
                flipped[axis, near] = beyond
    return collect_pairs(outermost, winner, flipped, vertices, width)


@kernel
def is_seen(rast, inner, outer, depth):
    """Whether an edge at z/w = depth separates what two pixels show (silhouette.is_seen)."""
    width = rast.shape[1]
    z_inner, z_outer = np.inf, np.inf
    if rast[inner // width, inner % width, 3] > 0:
        z_inner = np.float64(rast[inner // width, inner % width, 2])
    if rast[outer // width, outer % width, 3] > 0:
        z_outer = np.float64(rast[outer // width, outer % width, 2])
    return z_inner < z_outer and depth < z_outer and abs(depth) <= 1


@kernel
def collect_pairs(outermost, winner, flipped, vertices, width):
    """The pairs that were crossed, in the order of axis and first pixel."""
    count = 0
    for axis in range(2):
        for near in range(outermost.shape[1]):
            count += outermost[axis, near] >= 0
    rows = np.empty((count, 5), np.int64)
    row = 0
    for axis in range(2):
        for near in range(outermost.shape[1]):
            if outermost[axis, near] >= 0:
                far = near + 1 if axis == 0 else near + width
                beyond = flipped[axis, near]
                rows[row, 0] = far if beyond else near
                rows[row, 1] = near if beyond else far
                rows[row, 2] = vertices[winner[axis, near], 0]
                rows[row, 3] = vertices[winner[axis, near], 1]
                rows[row, 4] = axis
                row += 1
    return rows
