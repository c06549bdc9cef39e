"""Ear clipping of planar polygons, which may be concave or degenerate or touch themselves.

The method is that of G. H. Meisters, "Polygons have ears", 1975. A polygon of n corners gives n − 2
triangles. A corner is an ear if the outline turns left at this corner and no other corner lies in the
triangle that this corner forms with its two neighbours. After an ear is cut off, the next corner is skipped,
so a large polygon is divided into compact triangles instead of a fan. Corners are sorted into a uniform grid,
so that only the corners in the grid cells that a triangle overlaps are tested. The compiled functions use
only operations on scalars, because these compile fast.
"""

import numba
import numpy as np
from jaxtyping import Float, Int

# The maximum number of tests of corners and cells for all polygons of a file. This number of tests takes a
# few seconds.
MOST_TESTS = 300_000_000
# The rules of the ear test, strictest first. If a rule finds no ear, the next rule is used. STRICT: a corner
# inside the triangle or on its outline prevents an ear. LAX: only a corner inside the triangle prevents an
# ear. ANY: no corner prevents an ear.
STRICT, LAX, ANY = 0, 1, 2


def clip_ears(
    points: Float[np.ndarray, "C 2"], starts: Int[np.ndarray, " P"], sizes: Int[np.ndarray, " P"]
) -> tuple[Int[np.ndarray, "T 3"], int]:
    """Return the triangles of polygons as indices into `points`, and the number of divided polygons.

    points: the corners of all polygons, one polygon after the other, counter-clockwise, in a box of unit
    size. starts: the index of the first corner of each polygon. sizes: the number of corners of each polygon,
    at least 3. If the number of tests exceeds MOST_TESTS, the remaining polygons are not divided.
    """
    after, before = np.arange(len(points)) + 1, np.arange(len(points)) - 1
    after[starts + sizes - 1], before[starts] = starts, starts + sizes - 1
    # Each polygon has a grid with `side` cells along each axis. `order` contains the corners of one cell
    # after the other, and `first` is the start of each cell in `order`.
    side = np.maximum(1, np.sqrt(sizes / 2).astype(np.int64))
    low = np.minimum.reduceat(points, starts)
    extent = np.maximum((np.maximum.reduceat(points, starts) - low).max(1), 1e-300)
    per_cell = extent / side * (1 + 1e-9)
    offset = np.cumsum(side * side) - side * side
    owner = np.repeat(np.arange(len(sizes)), sizes)
    column, row = ((points - low[owner]) / per_cell[owner, None]).astype(np.int64).T
    last = side[owner] - 1
    cell = offset[owner] + np.minimum(row, last) * side[owner] + np.minimum(column, last)
    order = np.argsort(cell, kind="stable")
    first = np.searchsorted(cell[order], np.arange(int((side * side).sum()) + 1))
    x, y = np.ascontiguousarray(points.T)
    out = np.empty((int((sizes - 2).sum()), 3), dtype=np.int64)
    alive = np.ones(len(points), dtype=np.bool_)
    low_x, low_y = np.ascontiguousarray(low.T)
    grid = (side, per_cell, offset, first, order, low_x, low_y)
    return out, _clip_all(x, y, starts, sizes, after, before, alive, grid, out)


@numba.njit(cache=True, nogil=True)
def _clip_all(x, y, starts, sizes, after, before, alive, grid, out):
    side, per_cell, offset, first, order, low_x, low_y = grid
    left, done = MOST_TESTS, 0
    for polygon in range(len(starts)):
        count = sizes[polygon]
        b, misses, rule = starts[polygon] + 1, 0, STRICT
        while count > 2:
            a, c = before[b], after[b]
            same = _same(x, y, a, b) or _same(x, y, b, c) or _same(x, y, a, c)
            ear = same or rule == ANY
            left -= 1
            if not ear and _turn(x, y, a, b, c) > 0:
                ear = True
                size, cells = per_cell[polygon], side[polygon]
                left_x, right_x = min(x[a], x[b], x[c]), max(x[a], x[b], x[c])
                left_y, right_y = min(y[a], y[b], y[c]), max(y[a], y[b], y[c])
                column_low, column_high = _cells(left_x, right_x, low_x[polygon], size, cells)
                row_low, row_high = _cells(left_y, right_y, low_y[polygon], size, cells)
                for row in range(row_low, row_high):
                    for column in range(column_low, column_high):
                        cell = offset[polygon] + row * cells + column
                        left -= 1
                        for place in range(first[cell], first[cell + 1]):
                            left -= 1
                            p = order[place]
                            if alive[p] and p != a and p != b and p != c:
                                if _blocks(x, y, before[p], p, after[p], a, b, c, rule):
                                    ear = False
                                    break
                        if not ear:
                            break
                    if not ear:
                        break
            if left < 0:
                return polygon
            if ear:
                out[done, 0], out[done, 1], out[done, 2] = a, b, c
                done += 1
                count -= 1
                alive[b] = False
                after[a], before[c] = c, a
                b, misses, rule = after[c], 0, STRICT
            else:
                b, misses = c, misses + 1
                if misses > count:
                    rule, misses = rule + 1, 0
    return len(starts)


@numba.njit(cache=True, nogil=True)
def _cells(start, end, low, size, cells):
    """Return the range of grid cells that the interval from start to end covers along an axis."""
    return min(int((start - low) / size), cells - 1), min(int((end - low) / size), cells - 1) + 1


@numba.njit(cache=True, nogil=True)
def _blocks(x, y, previous, p, following, a, b, c, rule):
    """Return whether corner p prevents the triangle abc from being an ear. If the outline turns left at p,
    the result is always False.
    """
    one, two, three = _turn(x, y, a, b, p), _turn(x, y, b, c, p), _turn(x, y, c, a, p)
    if one < 0 or two < 0 or three < 0 or _turn(x, y, previous, p, following) > 0:
        return False
    if _same(x, y, p, a) or _same(x, y, p, c):
        return False
    return rule == STRICT or (one > 0 and two > 0 and three > 0)


@numba.njit(cache=True, nogil=True)
def _turn(x, y, a, b, c):
    """Return 1 for a left turn at b, -1 for a right turn, 0 if a, b and c are collinear up to rounding."""
    ux, uy, vx, vy = x[b] - x[a], y[b] - y[a], x[c] - x[b], y[c] - y[b]
    cross = ux * vy - uy * vx
    rounding = 4e-16 * (abs(ux) + abs(uy) + abs(vx) + abs(vy)) + 1e-12 * (abs(ux * vy) + abs(uy * vx))
    return 1 if cross > rounding else (-1 if cross < -rounding else 0)


@numba.njit(cache=True, nogil=True)
def _same(x, y, a, b):
    return x[a] == x[b] and y[a] == y[b]
