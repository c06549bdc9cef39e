"""Chair. The back is at −z: who sits on it looks to +z."""

from collections.abc import Callable

import torch
from torch import Tensor

from dataset.objects.colour import Colour, colour, mix, plain, shade, tint
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

WOODS = tuple(colour(c) for c in ("#c09660", "#7a4c2c"))
PAINTS = tuple(colour(c) for c in ("#c8342a", "#2f6db5", "#e8e2d4", "#4b9b55", "#e3a42f"))


def _grain(base: Colour, depth: float) -> Callable[[Coordinates], Tensor]:
    """Wood: darker streaks across x that waver along the board."""

    def albedo(p: Coordinates) -> Tensor:
        wave = torch.sin(5 * (p[1] + p[2]) + 1.0) + 0.5 * torch.sin(11 * (p[1] - p[2]))
        return mix(base, shade(base, 1 - depth), 0.5 + 0.5 * torch.sin(42 * p[0] + 1.2 * wave))

    return albedo


def chair(draw: Draw) -> ProceduralObject:
    """Four legs, a seat and a back, solid or with rungs; now and then a cushion."""
    width, depth = draw.vary(0.38, 0.07), draw.vary(0.36, 0.07)
    leg, thick = draw.uniform(0.064, 0.072), draw.uniform(0.062, 0.072)
    height, rise = draw.vary(0.56, 0.07), draw.vary(0.70, 0.07)
    slope, splay = draw.uniform(0.03, 0.14), draw.uniform(0.0, 0.05)
    rungs, cushion = draw.chance(0.35), draw.chance(0.35)

    def legs(p: Coordinates) -> Distance:
        top = (width - leg, 0.0, depth - leg)
        bottom = (width - leg + splay, -height, depth - leg + splay)
        # Both folds together give all four; the seat joins them.
        return round_cone((p[0].abs(), p[1], p[2].abs()), top, bottom, leg * 1.08, leg * 0.94)

    def seat(p: Coordinates) -> Distance:
        return box(p, (0.0, 0.0, 0.0), (width, thick, depth), 0.04)

    def back(p: Coordinates) -> Distance:
        local = turn_x(mirror_x(shift(p, (0.0, 0.0, leg - depth))), -slope)
        post = round_cone(local, (width - leg, 0.0, 0.0), (width - leg, rise, 0.0), leg, leg * 0.94)
        heights = ((0.40, 0.09), (0.67, 0.09), (0.94, 0.09)) if rungs else ((0.64, 0.39),)
        boards = [
            box(local, (0.0, rise * middle, 0.0), (width - leg, rise * half, 0.058), 0.035)
            for middle, half in heights
        ]
        return union(post, *boards)

    def pad(p: Coordinates) -> Distance:
        return box(p, (0.0, thick + 0.03, 0.03), (width - 0.05, 0.08, depth - 0.08), 0.07)

    wooden = draw.chance(0.7)
    base = tint(
        draw, draw.usually(colour("#a56c38"), WOODS, 0.75) if wooden else draw.usually(PAINTS[0], PAINTS)
    )
    albedo = _grain(base, 0.28) if wooden else plain(base)
    fabric = plain(tint(draw, draw.usually(colour("#b8322e"), PAINTS)))
    finish = draw.uniform(0.45, 0.7)
    solids = (("legs", legs), ("seat", seat), ("back", back))
    parts = tuple(Part(name, distance, albedo, finish) for name, distance in solids)
    return place("chair", (*parts, Part("cushion", pad, fabric, 0.9)) if cushion else parts)
