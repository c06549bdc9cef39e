"""Signed distances of simple solids, and operations that combine them.

`p` contains N points as three coordinate vectors (x, y, z), each [N]. One contiguous vector per axis is
fastest on the CPU. Parameters are Python floats, so nothing is copied to a GPU. Distances are negative inside
a solid and 1-Lipschitz. They are exact unless a docstring states otherwise.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Coordinates = tuple[Float[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]
Distance = Float[Tensor, " N"]
Vector = tuple[float, float, float]


def shift(p: Coordinates, centre: Vector) -> Coordinates:
    """Return the points relative to `centre`."""
    return p[0] - centre[0], p[1] - centre[1], p[2] - centre[2]


def mirror_x(p: Coordinates) -> Coordinates:
    """Replace x by |x|, so that a solid at +x appears a second time, mirrored, at −x."""
    return p[0].abs(), p[1], p[2]


def turn_x(p: Coordinates, angle: float) -> Coordinates:
    """Return coordinates in which a solid appears rotated by `angle` radians about +x, from +y towards +z."""
    c, s = math.cos(angle), math.sin(angle)
    return p[0], c * p[1] + s * p[2], c * p[2] - s * p[1]


def turn_y(p: Coordinates, angle: float) -> Coordinates:
    """Return coordinates in which a solid appears rotated by `angle` radians about +y, from +z towards +x."""
    c, s = math.cos(angle), math.sin(angle)
    return c * p[0] - s * p[2], p[1], s * p[0] + c * p[2]


def sectors(p: Coordinates, count: int, phase: float = 0.0) -> Coordinates:
    """Map all sectors around +y to the sector at +z, so that a solid in this sector appears `count` times.

    The solid must be symmetric in x, so that the distance is continuous at the borders between sectors.
    """
    radius = torch.hypot(p[0], p[2])
    angle = torch.atan2(p[0], p[2]) - phase
    step = 2 * math.pi / count
    angle = angle - step * torch.round(angle / step)
    return radius * angle.sin(), p[1], radius * angle.cos()


def norm(*components: Tensor) -> Tensor:
    """Return the Euclidean length of the vector with these components."""
    squared = components[0].square()
    for component in components[1:]:
        squared = squared + component.square()
    return squared.sqrt()


def union(*distances: Distance) -> Distance:
    """Return the union of the solids."""
    result = distances[0]
    for distance in distances[1:]:
        result = torch.minimum(result, distance)
    return result


def subtract(solid: Distance, hole: Distance) -> Distance:
    """Return the solid without the hole. Near the hole's rim, the result is a lower bound of the distance."""
    return torch.maximum(solid, -hole)


def smooth_union(a: Distance, b: Distance, width: float) -> Distance:
    """Return a union with a fillet: the distance is reduced by up to width / 4 where |a − b| < width."""
    overlap = (1 - (a - b).abs() / width).clamp(min=0)
    return torch.minimum(a, b) - overlap.square() * (width / 4)


def smooth_intersection(a: Distance, b: Distance, width: float) -> Distance:
    """Return the intersection with its edge rounded over `width`."""
    return -smooth_union(-a, -b, width)


def sphere(p: Coordinates, centre: Vector, radius: float) -> Distance:
    return norm(*shift(p, centre)) - radius


def ellipsoid(p: Coordinates, centre: Vector, radii: Vector) -> Distance:
    """Return the first-order distance to an ellipsoid.

    The gradient's length is exactly 1 at the surface. The error is about 20 % for axis ratios up to 2:1.
    """
    x, y, z = shift(p, centre)
    scaled = norm(x / radii[0], y / radii[1], z / radii[2])
    slope = norm(x / radii[0] ** 2, y / radii[1] ** 2, z / radii[2] ** 2)
    # The formula is undefined at the centre, where `scaled` and `slope` are 0. The limit along the shortest
    # axis, −min(radii), is used there.
    return torch.where(
        slope > 1e-6, scaled * (scaled - 1) / slope.clamp(min=1e-6), torch.full_like(x, -min(radii))
    ).clamp(min=-min(radii))


def box(p: Coordinates, centre: Vector, half: Vector, rounding: float = 0.0) -> Distance:
    """Return the distance to a box. half: half of the box's sizes, including the rounding."""
    q = [axis.abs() - (size - rounding) for axis, size in zip(shift(p, centre), half, strict=True)]
    inside = torch.maximum(torch.maximum(q[0], q[1]), q[2]).clamp(max=0)
    return norm(*(axis.clamp(min=0) for axis in q)) + inside - rounding


def revolve(p: Coordinates) -> tuple[Tensor, Tensor]:
    """Return (radius, height) of the points relative to the axis +y, for solids of revolution."""
    return norm(p[0], p[2]), p[1]


def box2(x: Tensor, y: Tensor, half: tuple[float, float], rounding: float = 0.0) -> Distance:
    """Return the distance to a rectangle in the plane. half: half of its sizes, including the rounding."""
    u, v = x.abs() - (half[0] - rounding), y.abs() - (half[1] - rounding)
    return norm(u.clamp(min=0), v.clamp(min=0)) + torch.maximum(u, v).clamp(max=0) - rounding


def cylinder(
    p: Coordinates, centre: Vector, radius: float, half_height: float, rounding: float = 0.0
) -> Distance:
    """Return the distance to a cylinder about +y with rounded edges."""
    r, y = revolve(shift(p, centre))
    return box2(r, y, (radius, half_height), rounding)


def torus(p: Coordinates, centre: Vector, radius: float, tube: float) -> Distance:
    """Return the distance to a torus about +y."""
    r, y = revolve(shift(p, centre))
    return norm(r - radius, y) - tube


def round_cone(
    p: Coordinates, start: Vector, end: Vector, radius_start: float, radius_end: float
) -> Distance:
    """Return the distance to the convex hull of two spheres.

    The hull is a union of spheres with centres t0 on the axis. For a point at t along the axis and at the
    distance ρ from the axis, the nearest sphere has t0 = t − ρ·tan α, where
    sin α = (radius_start − radius_end) / length.
    """
    axis = [e - s for s, e in zip(start, end, strict=True)]
    length = math.sqrt(sum(component**2 for component in axis))
    sin = (radius_start - radius_end) / length
    assert abs(sin) < 1, "one sphere contains the other"
    x, y, z = shift(p, start)
    along = (x * axis[0] + y * axis[1] + z * axis[2]) / length
    across = (x * x + y * y + z * z - along * along).clamp(min=0).sqrt()
    nearest = (along - across * (sin / math.sqrt(1 - sin * sin))).clamp(0, length)
    return norm(along - nearest, across) - radius_start + nearest * sin


def chain(p: Coordinates, joints: Sequence[Vector], radii: Sequence[float]) -> Distance:
    """Return the distance to round cones that connect consecutive joints, for example an arm or a leg."""
    links = zip(joints[:-1], joints[1:], radii[:-1], radii[1:], strict=True)
    return union(*(round_cone(p, *link) for link in links))


def blade(
    p: Coordinates, joints: Sequence[tuple[float, float]], radii: Sequence[float], flatness: float
) -> Distance:
    """Return the distance to a leaf along the joints (z, y) in the plane x = 0.

    The leaf's width along x is `flatness` times its thickness. The result is a lower bound of the distance,
    because the x axis is compressed by `flatness`.
    """
    flat = (p[0] / flatness, p[1], p[2])
    return chain(flat, [(0.0, y, z) for z, y in joints], radii)


def polygon(x: Tensor, y: Tensor, corners: Sequence[tuple[float, float]], rounding: float = 0.0) -> Distance:
    """Return the distance to a simple polygon in the plane, enlarged by `rounding`.

    The corners are in clockwise or counter-clockwise order.
    """
    squared = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        t = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        squared = torch.minimum(squared, (px - t * ex).square() + (py - t * ey).square())
        if ey != 0:  # even-odd rule: count the edges that a ray towards +x crosses
            inside = inside ^ (((y >= ay) != (y >= by)) & (px < py * (ex / ey)))
    distance = squared.sqrt()
    return torch.where(inside, -distance, distance) - rounding


def polyline(x: Tensor, y: Tensor, corners: Sequence[tuple[float, float]]) -> Distance:
    """Return the unsigned distance to the open line through `corners` in the plane."""
    squared = torch.full_like(x, math.inf)
    for (ax, ay), (bx, by) in zip(corners[:-1], corners[1:], strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        t = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        squared = torch.minimum(squared, (px - t * ex).square() + (py - t * ey).square())
    return squared.sqrt()


def spline(points: Sequence[tuple[float, float]], steps: int = 5) -> list[tuple[float, float]]:
    """Return points on the Catmull-Rom spline through `points`, with `steps` segments between two points."""
    curve = []
    padded = [points[0], *points, points[-1]]
    for before, start, end, after in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        for step in range(steps):
            t = step / steps
            weights = (
                (-t + 2 * t**2 - t**3) / 2,
                (2 - 5 * t**2 + 3 * t**3) / 2,
                (t + 4 * t**2 - 3 * t**3) / 2,
                (t**3 - t**2) / 2,
            )
            corners = list(zip(weights, (before, start, end, after), strict=True))
            curve.append((sum(w * c[0] for w, c in corners), sum(w * c[1] for w, c in corners)))
    return [*curve, tuple(points[-1])]


def extrude(flat: Distance, across: Tensor, half: float) -> Distance:
    """Return the distance to the plane figure `flat` extruded by ±half along `across`."""
    edge = across.abs() - half
    return norm(flat.clamp(min=0), edge.clamp(min=0)) + torch.maximum(flat, edge).clamp(max=0)
