"""Ice-cream cone, round about +y and turned freely; donut, on edge, its icing at +z."""

import math

import torch
from torch import Tensor

from dataset.procedural.colour import colour, mix, plain, ramp, shade, smooth_ramp, tint
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
    """A waffle cone, point down, under one scoop or two; now and then a cherry on top."""
    radius, length = draw.vary(0.30, 0.07), draw.vary(0.86, 0.07)
    ball, around = draw.vary(0.37, 0.06), draw.integer(4, 5)
    two, cherry = draw.chance(0.2), draw.chance(0.4)
    second = 0.86 * ball
    crest = 0.12 + ball + (1.05 * second if two else 0.0)
    waves, phase = draw.integer(6, 8), draw.angle()

    def waffle(p: Coordinates) -> Tensor:
        """1 on the ribs of the waffle, 0 between them: two families of spirals that cross."""
        azimuth, climb = torch.atan2(p[0], p[2]) * around, p[1] * (math.pi * 5.0)
        ribs = torch.maximum((azimuth + climb).cos().abs(), (azimuth - climb).cos().abs())
        return ramp(ribs, 0.68, 0.98)

    def cone(p: Coordinates) -> Distance:
        solid = round_cone(p, (0.0, 0.0, 0.0), (0.0, -length, 0.0), radius, 0.055)
        # The spirals crowd towards the axis and the tip, where the relief fades out.
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
    """A ring of dough about +z under icing with a wavy border at +z; now and then with no sprinkles."""
    radius, tube = draw.uniform(0.40, 0.45), draw.uniform(0.19, 0.215)
    waves, phase, drip = draw.integer(6, 8), draw.angle(), draw.uniform(0.035, 0.05)
    border, depth = draw.uniform(-0.03, 0.04), 0.03

    def ring(p: Coordinates, size: float) -> Distance:
        return norm(norm(p[0], p[1]) - radius, p[2]) - size

    def dough(p: Coordinates) -> Distance:
        return ring(p, tube)

    def icing(p: Coordinates) -> Distance:
        outward = smooth_ramp(norm(p[0], p[1]), radius - 0.12, radius + 0.5 * tube)
        wave = drip * torch.cos(torch.atan2(p[0], p[1]) * waves + phase) * outward
        return smooth_intersection(ring(p, tube + depth), (border + wave - p[2]) * 0.85, 0.04)

    def on_icing(azimuth: float, tilt: float) -> tuple[float, float, float]:
        """A point on the icing, `tilt` outwards from its crest."""
        out, top = radius + (tube + depth) * math.sin(tilt), (tube + depth) * math.cos(tilt)
        return out * math.sin(azimuth), out * math.cos(azimuth), top

    count = draw.integer(13, 16)
    grains = []
    for number in range(count):
        azimuth = 2 * math.pi * number / count + phase
        tilt = (-0.55, 0.75, 0.10)[number % 3] + draw.uniform(-0.12, 0.12)
        along = draw.angle()
        step = (0.045 * math.cos(along) / (radius + tube * math.sin(tilt)), 0.045 * math.sin(along) / tube)
        ends = [on_icing(azimuth + sign * step[0], tilt + sign * step[1]) for sign in (-1, 1)]
        grains.append((*ends, SPRINKLES[draw.integer(0, len(SPRINKLES) - 1)]))

    def grain_distances(p: Coordinates) -> Tensor:
        return torch.stack([round_cone(p, start, end, 0.036, 0.036) for start, end, _ in grains])

    def sprinkles(p: Coordinates) -> Distance:
        return grain_distances(p).amin(0)

    def grain_colours(p: Coordinates) -> Tensor:
        palette = torch.tensor([tone for *_, tone in grains], dtype=p[0].dtype, device=p[0].device)
        return palette[grain_distances(p).argmin(0)]

    crust = tint(draw, colour("#cf8f45"))
    cover = tint(draw, draw.usually(colour("#ef86ad"), (colour("#5b3220"), colour("#f3e9d6")), 0.6), 0.08)

    def baked(p: Coordinates) -> Tensor:
        """The belt where the dough floats in the oil stays pale."""
        return mix(shade(crust, 1.5), crust, ramp(p[2].abs(), 0.02, 0.08))

    parts = (
        Part("dough", dough, baked, draw.uniform(0.65, 0.8)),
        Part("icing", icing, plain(cover), draw.uniform(0.3, 0.4)),
        Part("sprinkles", sprinkles, grain_colours, 0.5),
    )
    return place("donut", parts if draw.chance(0.85) else parts[:2])
