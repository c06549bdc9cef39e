"""Ice-cream cone. It is round about +y, so it may be turned freely."""

import math

import torch
from torch import Tensor

from dataset.objects.colour import colour, mix, plain, ramp, shade, tint
from dataset.objects.draw import Draw
from dataset.objects.primitives import Coordinates, Distance, norm, round_cone, smooth_union, sphere, torus
from dataset.objects.solid import Part, ProceduralObject, place

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
