"""numba kernels of the CPU rasteriser. Each call processes one view in float64 and releases the GIL.

The formulas are those of reference.py, and tests compare the results of both files. `parallel=True` is not
used, because its OpenMP threads compete with those of torch. The caller distributes the views over threads
instead.
"""

import math

import numpy as np

from render.kernels.numba_kernel import kernel


@kernel
def cross(ax, ay, aw, bx, by, bw):
    """Return a × b over (x, y, w)."""
    return ay * bw - aw * by, aw * bx - ax * bw, ax * by - ay * bx


@kernel
def is_top_left(x, y, w):
    """Return whether an inward edge normal n satisfies the top-left rule. Exactly one of n and −n does."""
    return x > 0 or (x == 0 and (y > 0 or (y == 0 and w > 0)))


@kernel
def pixel_range(p, q, r, size):
    """Return the first and last pixel whose centre is within the range of three coordinates x/w (or y/w)."""
    low = (min(p, q, r) + 1) * size / 2 - 0.5
    high = (max(p, q, r) + 1) * size / 2 - 0.5
    # The tolerance of 1e-6 includes centres that lie exactly on the outline. Values are clamped before the
    # conversion to integers, because they may be as large as 1e30.
    first = np.ceil(min(max(low - 1e-6, 0.0), float(size)))
    last = np.floor(max(min(high + 1e-6, size - 1.0), -1.0))
    return int(first), int(last)


@kernel
def rasterize(clip, faces, rast):
    """Write (u, v, z/w, face + 1) of the nearest face to rast [H,W,4], which starts at zero."""
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
        # A triangle that extends behind the camera has an unbounded projection, so its box is the whole
        # image.
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
        top_left0, top_left1, top_left2 = (
            is_top_left(n0x, n0y, n0w),
            is_top_left(n1x, n1y, n1w),
            is_top_left(n2x, n2y, n2w),
        )
        for row in range(top, bottom + 1):
            y = (row + 0.5) * 2 / height - 1
            for column in range(left, right + 1):
                x = (column + 0.5) * 2 / width - 1
                e0 = n0x * x + n0y * y + n0w
                if not (e0 > 0 or (e0 == 0 and top_left0)):
                    continue
                e1 = n1x * x + n1y * y + n1w
                if not (e1 > 0 or (e1 == 0 and top_left1)):
                    continue
                e2 = n2x * x + n2y * y + n2w
                if not (e2 > 0 or (e2 == 0 and top_left2)):
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
    """Add the gradient with respect to x, y, w of the corners to grad_clip [V,4], given that of u and v.

    Let p = (x, y, 1) be the pixel centre, eᵢ = p · (vᵢ₊₁ × vᵢ₊₂), u = e₀/Σe and v = e₁/Σe. Then ∂u/∂eᵢ = (δᵢ₀
    − u)/Σe. With gᵢ = ∂L/∂eᵢ, ∂L/∂v₀ = p × (g₁ v₂ − g₂ v₁). The gradients of v₁ and v₂ follow by cyclic
    permutation of the indices.
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
    """Write u·a0 + v·a1 + (1 − u − v)·a2 to out [H,W,C], which starts at zero."""
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
    """Add to the gradient grad_attributes [V,C], and write the gradient of u and v to grad_rast [H,W,4]. Both
    arrays start at zero.
    """
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
