"""Chair. The back is at −z: who sits on it looks to +z."""

import torch
from torch import Tensor

from dataset.objects.colour import Colour, colour, mix, plain, ramp, shade, tint
from dataset.objects.draw import Draw
from dataset.objects.primitives import (
    Coordinates,
    Distance,
    box,
    mirror_x,
    round_cone,
    shift,
    turn_x,
    union,
)
from dataset.objects.solid import Part, ProceduralObject, place

CHAIR_COLOURS = tuple(colour(c) for c in ("#c8342a", "#2f6db5", "#e8e2d4", "#4b9b55", "#e3a42f", "#c99a62"))


def _grain(base: Colour, depth: float):
    """Wood: darker streaks that run along y with a slow wave."""

    def albedo(p: Coordinates) -> Tensor:
        streak = torch.sin(34 * p[0] + 5 * torch.sin(3 * p[1])) * torch.sin(
            31 * p[2] + 4 * torch.sin(2.3 * p[1])
        )
        return mix(base, shade(base, 1 - depth), ramp(streak, -0.4, 0.9))

    return albedo


def chair(draw: Draw) -> ProceduralObject:
    """Four legs, a seat and a back, solid or with rungs."""
    width, depth = draw.vary(0.34, 0.07), draw.vary(0.33, 0.07)
    leg, thick = draw.uniform(0.058, 0.066), draw.uniform(0.055, 0.065)
    height, rise = draw.vary(0.58, 0.07), draw.vary(0.72, 0.07)
    slope, splay = draw.uniform(0.03, 0.14), draw.uniform(0.0, 0.05)
    rungs, cushion = draw.chance(0.4), draw.chance(0.35)

    def legs(p: Coordinates) -> Distance:
        x, y, z = mirror_x(p)
        top = (width - leg, 0.0, depth - leg)
        bottom = (width - leg + splay, -height, depth - leg + splay)
        # Folding z as well gives all four; the seat joins them.
        return round_cone((x, y, z.abs()), top, bottom, leg * 1.08, leg * 0.92)

    def seat(p: Coordinates) -> Distance:
        return box(p, (0.0, 0.0, 0.0), (width, thick, depth), 0.04)

    def back(p: Coordinates) -> Distance:
        x, y, z = mirror_x(turn_x(shift(p, (0.0, 0.0, thick - depth)), -slope))
        post = round_cone((x, y, z), (width - leg, 0.0, 0.0), (width - leg, rise, 0.0), leg, leg * 0.92)
        if not rungs:
            panel = box((x, y, z), (0.0, 0.62 * rise, 0.0), (width - leg, 0.40 * rise, 0.05), 0.035)
            return union(post, panel)
        bars = [
            box((x, y, z), (0.0, rise * at, 0.0), (width - leg, rise * 0.10, 0.05), 0.03)
            for at in (0.36, 0.66, 0.94)
        ]
        return union(post, *bars)

    def pad(p: Coordinates) -> Distance:
        return box(p, (0.0, thick + 0.03, 0.02), (width - 0.05, 0.07, depth - 0.07), 0.065)

    wood = colour("#8d5a2f")
    paint = tint(draw, draw.usually(wood, CHAIR_COLOURS))
    albedo = _grain(paint, 0.3) if draw.chance(0.7) else plain(paint)
    fabric = tint(draw, draw.usually(colour("#b8322e"), CHAIR_COLOURS))
    finish = draw.uniform(0.45, 0.7)
    parts = [
        Part(name, solid, albedo, finish) for name, solid in (("legs", legs), ("seat", seat), ("back", back))
    ]
    if cushion:
        parts.append(Part("cushion", pad, plain(fabric), 0.9))
    return place("chair", tuple(parts))
