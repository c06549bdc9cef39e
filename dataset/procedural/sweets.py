"""Categories ice-cream cone and donut.

The ice-cream cone has a random azimuth about +y. The donut is a ring about z with its icing at +z.
"""

import math

import torch
from torch import Tensor

from dataset.procedural.colour import colour, mix, over, plain, ramp, shade, smooth_ramp, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    norm,
    round_cone,
    smooth_intersection,
    smooth_union,
    sphere,
    torus,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

SPRINKLES = tuple(colour(c) for c in ("#f6f1e4", "#f2cf3a", "#3fa7d6", "#59b54f", "#e2402f"))
FLAVOURS = tuple(colour(c) for c in ("#f3e3b0", "#6b4126", "#9fd6ae", "#e9a04a"))


def ice_cream_cone(draw: Draw) -> ProceduralObject:
    """Return a waffle cone that points down, with one or two scoops and sometimes a cherry on top."""
    radius, length = draw.vary(0.30, 0.07), draw.vary(0.86, 0.07)
    ball, around = draw.vary(0.37, 0.06), draw.integer(4, 5)
    two, cherry = draw.chance(0.2), draw.chance(0.4)
    second = 0.86 * ball
    crest = 0.12 + ball + (1.05 * second if two else 0.0)
    waves, phase = draw.integer(6, 8), draw.angle()

    def waffle(p: Coordinates) -> Tensor:
        """Return 1 on the ribs of the waffle and 0 between them.

        The ribs are two sets of spirals that cross each other.
        """
        azimuth, climb = torch.atan2(p[0], p[2]) * around, p[1] * (math.pi * 5.0)
        ribs = torch.maximum((azimuth + climb).cos().abs(), (azimuth - climb).cos().abs())
        return ramp(ribs, 0.68, 0.98)

    def cone(p: Coordinates) -> Distance:
        solid = round_cone(p, (0.0, 0.0, 0.0), (0.0, -length, 0.0), radius, 0.055)
        # The spirals are close to each other near the axis and the tip, so the relief is faded out there.
        fade = ramp(norm(p[0], p[2]), 0.0, 0.2) * ramp(p[1], -length, 0.3 - length)
        return (solid - 0.015 * waffle(p) * fade) * 0.85

    def scoops(p: Coordinates) -> Distance:
        wave = 0.03 * torch.cos(torch.atan2(p[0], p[2]) * waves + phase) * ramp(norm(p[0], p[2]), 0.05, 0.3)
        skirt = torus((p[0], p[1] + wave, p[2]), (0.0, 0.02, 0.0), 0.86 * ball, 0.085)
        lower = smooth_union(sphere(p, (0.0, 0.12, 0.0), ball), skirt, 0.06)
        if not two:
            return lower * 0.9
        return smooth_union(lower, sphere(p, (0.0, 0.12 + 1.05 * ball, 0.0), second), 0.06) * 0.9

    def fruit(p: Coordinates) -> Distance:
        return sphere(p, (0.0, crest + 0.06, 0.0), 0.11)

    wafer = tint(draw, colour("#d99a4e"))
    cream = tint(draw, draw.usually(colour("#f2a0b5"), FLAVOURS, 0.55), 0.08)
    other = tint(draw, draw.usually(colour("#f3e3b0"), FLAVOURS), 0.08)

    def flavour(p: Coordinates) -> Tensor:
        return mix(cream, other if two else cream, ramp(p[1], 0.12 + 0.62 * ball, 0.14 + 0.62 * ball))

    def crust(p: Coordinates) -> Tensor:
        return mix(shade(wafer, 0.6), wafer, waffle(p))

    parts = (
        Part("cone", cone, crust, draw.uniform(0.7, 0.85)),
        Part("scoops", scoops, flavour, draw.uniform(0.4, 0.6)),
        Part("cherry", fruit, plain(tint(draw, colour("#b3121f"))), 0.3),
    )
    return place("ice_cream_cone", parts if cherry else parts[:2], draw.angle())


def donut(draw: Draw) -> ProceduralObject:
    """Return a donut: a thick ring about z, icing with a wavy border at +z, and usually sprinkles."""
    radius, tube = draw.uniform(0.41, 0.45), draw.uniform(0.225, 0.25)
    waves, phase, drip = draw.integer(7, 10), draw.angle(), draw.uniform(0.03, 0.045)
    border, depth = draw.uniform(-0.02, 0.05), 0.03
    rows, columns = 6, draw.integer(18, 21)
    grain_length, grain_width = draw.uniform(0.026, 0.030), draw.uniform(0.013, 0.015)
    topping = draw.usually("mixed", ("one colour", "drizzle", "none"), 0.6)
    relief = 0.012 if topping in ("mixed", "one colour") else 0.0

    def ring(p: Coordinates, size: float) -> Distance:
        return norm(norm(p[0], p[1]) - radius, p[2]) - size

    def dough(p: Coordinates) -> Distance:
        return ring(p, tube)

    def sprinkle(p: Coordinates) -> tuple[Tensor, Tensor]:
        """Return the distance along the icing to the nearest sprinkle, and its random number in [0, 1).

        The icing is divided into rows x columns cells of (angle around the tube, azimuth). Each cell contains
        at most one sprinkle, with a random offset and angle. A sprinkle never crosses the border of its cell.
        """
        r = norm(p[0], p[1])
        around, tilt = torch.atan2(p[0], p[1]), torch.atan2(r - radius, p[2])
        row = torch.floor(tilt * (rows / math.pi) + 0.5 * rows)
        u = around * (columns / (2 * math.pi)) + 0.5 * row + phase
        column = torch.remainder(torch.floor(u), columns)
        own = torch.remainder(7.0 * torch.sin(1.7 * column + 4.3 * row + phase), 1.0)
        other = torch.remainder(own * 9.31, 1.0)
        size = (radius + tube * torch.sin(tilt)) * (2 * math.pi / columns), tube * math.pi / rows
        x = (torch.remainder(u, 1.0) - 0.5) * size[0] + 0.02 * (other - 0.5)
        y = (tilt * (rows / math.pi) + 0.5 * rows - row - 0.5) * size[1] + 0.02 * (own - 0.5)
        c, s = torch.cos(math.pi * other), torch.sin(math.pi * other)
        along, across = c * x + s * y, c * y - s * x
        # The cells near the hole are too short for a whole sprinkle, so they stay empty.
        row_length = (radius + tube * torch.sin((row + 0.5) * (math.pi / rows) - 0.5 * math.pi)) / columns
        missing = ((own > 0.82) | (row_length < 0.0175)).to(own)
        return norm((along.abs() - grain_length).clamp(min=0), across) - grain_width + missing, own

    def icing(p: Coordinates) -> Distance:
        outward = smooth_ramp(norm(p[0], p[1]), radius - 0.12, radius + 0.5 * tube)
        wave = drip * torch.cos(torch.atan2(p[0], p[1]) * waves + phase) * outward
        surface = ring(p, tube + depth)
        if relief:
            near = ramp(surface, -0.1, -0.05)
            surface = (surface - relief * ramp(sprinkle(p)[0], 0.008, -0.02) * near) * 0.92
        return smooth_intersection(surface, (border + wave - p[2]) * 0.85, 0.04)

    crust = tint(draw, colour("#c98a45"))
    cover = tint(draw, draw.usually(colour("#ef86ad"), (colour("#4a2617"), colour("#f3e9d6")), 0.55), 0.08)
    single = draw.usually(SPRINKLES[0], SPRINKLES)
    lines = draw.usually(colour("#f6f1e4"), (colour("#4a2617"),), 0.5 if cover[0] > 0.3 else 1.0)

    def baked(p: Coordinates) -> Tensor:
        """Return the albedo of the dough: mottled brown, with a pale band around the middle."""
        spots_of_heat = torch.sin(17 * p[0] + 2.0) * torch.sin(19 * p[1]) * torch.sin(15 * p[2] + 1.0)
        skin = mix(shade(crust, 0.82), shade(crust, 1.1), 0.5 + 0.5 * spots_of_heat)
        return over(skin, shade(crust, 1.7), ramp((p[2] + 0.05).abs(), 0.075, 0.02))

    def glaze(p: Coordinates) -> Tensor:
        skin = plain(cover)(p)
        if topping == "drizzle":
            stripe = torch.cos(26 * (p[0] + 0.35 * p[1]) + 1.2 * torch.sin(9 * p[1] + phase))
            return over(skin, lines, ramp(stripe, 0.45, 0.6) * ramp(p[2], 0.08, 0.10))
        if topping == "none":
            return over(
                skin, shade(cover, 1.25), 0.5 * ramp(torch.sin(7 * p[0] + 5 * p[1] + phase), 0.2, 0.9)
            )
        outline, own = sprinkle(p)
        palette = torch.tensor(
            SPRINKLES if topping == "mixed" else [single], dtype=p[0].dtype, device=p[0].device
        )
        chosen = palette[(own / 0.83 * len(palette)).long().clamp(max=len(palette) - 1)]
        return skin + ramp(outline, 0.004, -0.004)[:, None] * (chosen - skin)

    parts = (
        Part("dough", dough, baked, draw.uniform(0.65, 0.8)),
        Part("icing", icing, glaze, draw.uniform(0.3, 0.4)),
    )
    return place("donut", parts)
