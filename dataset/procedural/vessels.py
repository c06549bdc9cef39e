"""Categories mug, teapot and vase.

The mug's handle is at +x. The teapot's spout is at +x and its handle at −x. The vase is rotationally
symmetric about +y.
"""

import math

import torch
from torch import Tensor

from dataset.procedural.colour import colour, mix, over, plain, ramp, shade, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    box2,
    cylinder,
    ellipsoid,
    norm,
    polygon,
    polyline,
    revolve,
    round_cone,
    smooth_intersection,
    smooth_union,
    sphere,
    spline,
    subtract,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

MUG_COLOURS = tuple(colour(c) for c in ("#d8382c", "#e9e4d8", "#3f9a57", "#eebb2c", "#e07b28", "#45b5b0"))


def mug(draw: Draw) -> ProceduralObject:
    """Return a mug: a cup with a constant wall thickness, a round rim, a handle at +x, sometimes a motif."""
    radius, half_height = draw.vary(0.40, 0.05), draw.vary(0.47, 0.06)
    wall = draw.uniform(0.044, 0.05)  # half of the wall's thickness
    flare, corner = draw.uniform(-0.01, 0.04), draw.uniform(0.06, 0.16)
    tube, reach, tall = draw.uniform(0.06, 0.068), draw.vary(0.285, 0.05), draw.vary(0.29, 0.08)
    middle = draw.uniform(-0.02, 0.05)
    bevel = [
        (radius - flare - corner * (1 - math.sin(a)), corner * (1 - math.cos(a)) - half_height)
        for a in (0.0, 0.4, 0.8, 1.2)
    ]
    profile = [
        (-0.1, -half_height),
        *bevel,
        (radius - flare, corner - half_height),
        (radius + flare, half_height),
    ]

    def cup(p: Coordinates) -> Distance:
        return polyline(*revolve(p), profile) - wall

    def handle(p: Coordinates) -> Distance:
        outline = box2(p[0] - radius, p[1] - middle, (reach, tall), 0.8 * reach)
        ear = norm(outline, p[2] * 0.9) - tube
        return subtract(ear, revolve(p)[0] - radius)

    def body(p: Coordinates) -> Distance:
        return smooth_union(cup(p), handle(p), 0.04)

    outside = tint(draw, draw.usually(colour("#2f62b8"), MUG_COLOURS))
    inside = tint(draw, colour("#ece8dc"), 0.04)
    second = draw.usually(inside, (shade(outside, 0.45), colour("#d9a63a")), 0.6)
    motif = draw.usually("plain", ("band", "stripes", "dots"), 0.55)
    glaze, dots = draw.uniform(0.3, 0.4), draw.integer(6, 8)

    def glazed(p: Coordinates) -> Tensor:
        """Return the albedo: the motif outside, and the inner colour up to the middle of the rim."""
        r, y = revolve(p)
        skin = plain(outside)(p)
        beyond = r - radius - flare * (y / half_height)  # distance from the middle of the wall
        on_wall = ramp(beyond, wall + 0.03, wall + 0.015)
        if motif == "band":
            skin = over(skin, second, on_wall * ramp((y + 0.02).abs(), 0.17, 0.155))
        elif motif == "stripes":
            skin = over(skin, second, on_wall * ramp(torch.sin(y * (math.pi / 0.12)), -0.1, 0.1))
        elif motif == "dots":
            row = torch.round(y / 0.2)
            turn = torch.atan2(p[0], p[2]) * (dots / (2 * math.pi)) + 0.5 * row
            across = (torch.remainder(turn, 1.0) - 0.5) * (2 * math.pi * radius / dots)
            skin = over(skin, second, on_wall * ramp(norm(across, y - 0.2 * row), 0.068, 0.058))
        hollow = ramp(beyond, 0.006, -0.006) * ramp(y, 0.0 - half_height, wall - half_height)
        return over(skin, inside, hollow)

    return place("mug", (Part("body", body, glazed, glaze),))


def teapot(draw: Draw) -> ProceduralObject:
    """Return a teapot: a round pot with a foot, a lid with a knob, a rising spout at +x, a handle at −x."""
    radius, tall = draw.vary(0.46, 0.05), draw.vary(0.38, 0.07)
    tube, reach, ear = draw.uniform(0.064, 0.074), draw.vary(0.27, 0.06), draw.vary(0.27, 0.07)
    lip = draw.vary(0.30, 0.08)

    def pot(p: Coordinates) -> Distance:
        belly = ellipsoid(p, (0.0, 0.0, 0.0), (radius, tall, radius))
        foot = cylinder(p, (0.0, 0.03 - tall, 0.0), 0.58 * radius, 0.07, 0.03)
        return smooth_union(belly, foot, 0.05)

    def spout(p: Coordinates) -> Distance:
        joints = [(0.7 * radius, -0.12, 0.0), (radius + 0.13, 0.02, 0.0), (radius + 0.25, lip, 0.0)]
        neck = smooth_union(
            round_cone(p, joints[0], joints[1], 0.17, 0.10),
            round_cone(p, joints[1], joints[2], 0.10, 0.075),
            0.12,
        )
        # The mouth of the spout is cut horizontally and is slightly hollow.
        mouth = sphere(p, (joints[2][0] + 0.015, lip + 0.065, 0.0), 0.06)
        return smooth_intersection(subtract(neck, mouth), p[1] - lip - 0.03, 0.03)

    def handle(p: Coordinates) -> Distance:
        half = (reach, ear)
        ring = norm(box2(p[0] + 0.90 * radius, p[1] - 0.03, half, 0.96 * min(half)), p[2]) - tube
        return subtract(ring, ellipsoid(p, (0.0, 0.0, 0.0), (0.8 * radius, 0.8 * tall, 0.8 * radius)))

    def lid(p: Coordinates) -> Distance:
        cover = ellipsoid(p, (0.0, 0.80 * tall, 0.0), (0.60 * radius, 0.16, 0.60 * radius))
        return smooth_union(cover, sphere(p, (0.0, 0.80 * tall + 0.21, 0.0), 0.085), 0.06)

    glaze = tint(draw, draw.usually(colour("#3f8f6b"), MUG_COLOURS))
    trim = tint(draw, draw.usually(glaze, (colour("#ece8dc"), colour("#d9a63a")), 0.5))
    gloss = draw.uniform(0.3, 0.4)
    paint = tint(draw, draw.usually(colour("#ece8dc"), (colour("#d9a63a"), shade(glaze, 0.4))))
    motif, petals = draw.usually("plain", ("bands", "flowers"), 0.4), draw.integer(7, 9)

    def glazed(p: Coordinates) -> Tensor:
        """Return the albedo of the pot: plain, two bands, or a ring of flowers."""
        skin = plain(glaze)(p)
        if motif == "bands":
            skin = over(skin, paint, ramp((p[1].abs() - 0.13).abs(), 0.030, 0.022))
        elif motif == "flowers":
            turn = torch.atan2(p[0], p[2]) * (petals / (2 * math.pi))
            x, y = (torch.remainder(turn, 1.0) - 0.5) * (2 * math.pi * radius / petals), p[1] - 0.04
            petal = norm(x, y) * (1 - 0.25 * torch.cos(5 * torch.atan2(x, y)))
            skin = over(skin, paint, ramp(petal, 0.085, 0.075))
            skin = over(skin, colour("#e3a42f"), ramp(norm(x, y), 0.034, 0.026))
        return skin

    def lid_paint(p: Coordinates) -> Tensor:
        """Return the albedo of the lid, with a dark gap where it touches the pot."""
        return over(plain(trim)(p), shade(trim, 0.4), ramp(p[1], 0.80 * tall - 0.03, 0.80 * tall - 0.045))

    parts = (
        Part("pot", pot, glazed, gloss),
        Part("spout", spout, plain(glaze), gloss),
        Part("handle", handle, plain(trim), gloss),
        Part("lid", lid, lid_paint, gloss),
    )
    return place("teapot", parts)


def vase(draw: Draw) -> ProceduralObject:
    """Return a hollow vase with a foot, a belly, a neck and a wide lip, plain or with painted bands."""
    tall, belly = draw.vary(0.66, 0.05), draw.uniform(0.36, 0.42)
    foot, neck, lip = draw.uniform(0.20, 0.25), draw.uniform(0.20, 0.24), draw.uniform(0.28, 0.33)
    widest, throat = draw.uniform(-0.25, 0.02) * tall, draw.uniform(0.60, 0.70) * tall
    wall = draw.uniform(0.095, 0.11)
    profile = spline(
        [
            (foot + 0.02, -tall),
            (foot, 0.05 - 0.95 * tall),
            (0.88 * belly, widest - 0.24),
            (belly, widest),
            (0.86 * belly, widest + 0.21),
            (neck, throat),
            (lip, tall),
        ],
        steps=7,
    )
    # Both outlines extend across the axis, because the distance would be 0 along an edge on the axis.
    outside = [(-0.3, -tall), *profile, (-0.3, tall)]
    floor = 0.13 - tall
    inner = [(max(r - wall, 0.08), y) for r, y in profile if y > floor]
    inside = [
        (-0.3, floor),
        (inner[0][0], floor),
        *inner,
        (inner[-1][0] + 0.1, tall + 0.3),
        (-0.3, tall + 0.3),
    ]

    def cavity(p: Coordinates) -> Distance:
        return polygon(*revolve(p), inside)

    def body(p: Coordinates) -> Distance:
        return smooth_intersection(polygon(*revolve(p), outside), -cavity(p), 0.05)

    glaze = tint(draw, draw.usually(colour("#2d5fa8"), (*MUG_COLOURS, colour("#b8623a"))))
    paint = tint(draw, draw.usually(colour("#ece8dc"), (colour("#d9a63a"), colour("#2b2f3a")), 0.6), 0.05)
    banded, petals, reach = draw.chance(0.65), draw.integer(5, 8), draw.uniform(0.05, 0.08)

    def painted(p: Coordinates) -> Tensor:
        """Return the albedo: a wavy band around the belly, a ring around the neck and one on the foot."""
        outer = mix(glaze, glaze, p[0])
        if banded:
            wave = reach * torch.cos(torch.atan2(p[0], p[2]) * petals)
            bands = torch.stack(
                [
                    ramp((p[1] - widest - wave).abs(), 0.075, 0.055),
                    ramp((p[1] - throat).abs(), 0.05, 0.035),
                    ramp(p[1], 0.11 - tall, 0.09 - tall),
                ]
            ).amax(0)
            outer = mix(glaze, paint, bands)
        lining = ramp(cavity(p), 0.035, 0.02)[:, None]
        return outer + lining * (mix(paint, paint, p[0]) - outer)

    return place("vase", (Part("body", body, painted, draw.uniform(0.3, 0.45)),))
