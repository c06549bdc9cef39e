"""Mushroom. It is round about +y, so it may be turned freely."""

import torch
from torch import Tensor

from dataset.objects.colour import bell, colour, mix, ramp, spots, tint
from dataset.objects.draw import Draw
from dataset.objects.primitives import (
    Coordinates,
    Distance,
    ellipsoid,
    norm,
    round_cone,
    smooth_intersection,
    smooth_union,
    torus,
)
from dataset.objects.solid import Part, ProceduralObject, place


def mushroom(draw: Draw) -> ProceduralObject:
    """A spotted dome over a hollow underside, on a stem with a ring and a thick foot."""
    radius, dome = draw.vary(0.60, 0.07), draw.vary(0.50, 0.08)
    spacing, phase, spot = draw.uniform(0.60, 0.70), draw.angle(), draw.uniform(0.20, 0.23)
    brown = draw.chance(0.25)

    def spot_distance(p: Coordinates) -> Tensor:
        """Radians from the nearest spot's centre, seen from the middle of the dome's base."""
        polar = torch.atan2(norm(p[0], p[2]) / radius, p[1] / dome)
        return norm(*spots(torch.atan2(p[0], p[2]), polar, spacing, phase, jitter=0.05))

    def cap(p: Coordinates) -> Distance:
        full = ellipsoid(p, (0.0, 0.0, 0.0), (radius, dome, radius))
        fade = ramp(norm(p[0], p[1], p[2]), 0.1, 0.3) * ramp(p[1], 0.0, 0.1)
        raised = 0.03 * ramp(spot_distance(p), spot + 0.03, spot - 0.09) * fade
        hollow = ellipsoid(p, (0.0, -0.10, 0.0), (0.88 * radius, 0.22, 0.88 * radius))
        bowl = smooth_intersection(full - raised, -hollow, 0.06)
        return smooth_intersection(bowl, -p[1] - 0.07, 0.10) * 0.85

    length, thick = draw.vary(0.66, 0.08), draw.vary(0.155, 0.1)
    foot, lean = draw.vary(0.21, 0.1), draw.uniform(0.0, 0.05)
    ring = draw.chance(0.5)

    def stem(p: Coordinates) -> Distance:
        shaft = round_cone(p, (lean, -length, 0.0), (0.0, 0.18, 0.0), thick * 1.1, thick * 0.9)
        bulb = ellipsoid(p, (lean, -length, 0.0), (foot, 0.17, foot))
        solid = smooth_union(shaft, bulb, 0.12)
        collar = torus(p, (0.3 * lean, -0.2, 0.0), thick, 0.05)
        return smooth_union(solid, collar, 0.06) if ring else solid

    red, cream = tint(draw, colour("#cf2318")), tint(draw, colour("#efe3c8"), 0.06)
    top = tint(draw, colour("#9a6236")) if brown else red
    white = tint(draw, colour("#f2ece0"), 0.04)
    gills = tint(draw, colour("#dcc6a0"), 0.06)

    def skin(p: Coordinates) -> Tensor:
        outside = ellipsoid(p, (0.0, 0.0, 0.0), (radius, dome, radius))
        above = (ramp(outside, -0.05, -0.035) * ramp(p[1], 0.0 - 0.07, 0.0 - 0.05))[:, None]
        painted = mix(white, top, ramp(spot_distance(p), spot - 0.02, spot + 0.02))
        azimuth = torch.atan2(p[0], p[2])
        under = mix(gills, cream, bell(torch.remainder(azimuth * 24 / torch.pi, 2) - 1, 1.0))
        return painted * above + under * (1 - above)

    parts = (
        Part("cap", cap, skin, roughness=draw.uniform(0.35, 0.5)),
        Part(
            "stem",
            stem,
            lambda p: mix(gills, cream, ramp(p[1], -length - 0.1, -0.2)),
            draw.uniform(0.7, 0.85),
        ),
    )
    return place("mushroom", parts, draw.angle())
