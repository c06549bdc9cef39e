"""Airplane and boat. Nose and bow point to +z."""

import torch
from torch import Tensor

from dataset.procedural.colour import colour, mix, plain, ramp, shade, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    box,
    box2,
    cylinder,
    extrude,
    norm,
    polygon,
    round_cone,
    smooth_intersection,
    smooth_union,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

PAINTS = tuple(colour(c) for c in ("#2b62c4", "#e5762a", "#3a9b56", "#eebd24"))


def airplane(draw: Draw) -> ProceduralObject:
    """A plump airliner: swept wings with an engine each, a tail fin, a dark windscreen, a row of windows."""
    girth, length = draw.vary(0.185, 0.06), draw.vary(0.68, 0.05)
    span, chord = draw.vary(0.72, 0.06), draw.vary(0.20, 0.08)
    sweep, rise = draw.uniform(0.16, 0.28), draw.uniform(0.02, 0.08)
    fin = draw.vary(0.34, 0.08)
    plane, low = draw.uniform(-0.02, 0.04), -0.35 * girth
    pod, out = draw.uniform(0.072, 0.082), draw.uniform(0.38, 0.44) * span

    def fuselage(p: Coordinates) -> Distance:
        nose, tail = (0.0, -0.02, length - 0.13), (0.0, 0.05, -length)
        tube = round_cone(p, (0.0, 0.0, 0.30), (0.0, 0.0, -0.25), girth, girth)
        front = round_cone(p, (0.0, 0.0, 0.30), nose, girth, 0.55 * girth)
        rear = round_cone(p, (0.0, 0.0, -0.25), tail, girth, 0.35 * girth)
        return smooth_union(smooth_union(tube, front, 0.05), rear, 0.05)

    def wing(p: Coordinates) -> Distance:
        """Both wings, before they are cut into root and tip; 0.12 thick."""
        x = p[0].abs()
        outline = [
            (0.0, plane + chord),
            (span, plane - sweep + 0.45 * chord),
            (span, plane - sweep - 0.40 * chord),
            (0.0, plane - chord),
        ]
        level = p[1] - low - rise * x
        return extrude(polygon(x, p[2], outline), level, 0.012) * 0.97 - 0.047

    def tip(p: Coordinates) -> Distance:
        return p[0].abs() - 0.78 * span

    def tailplane(p: Coordinates) -> Distance:
        x = p[0].abs()
        outline = [(0.0, 0.20 - length), (0.29, 0.08 - length), (0.29, -0.02 - length), (0.0, 0.0 - length)]
        return extrude(polygon(x, p[2], outline), p[1] - 0.06, 0.012) - 0.047

    def tail(p: Coordinates) -> Distance:
        outline = [(0.28 - length, 0.05), (0.07 - length, fin), (-0.05 - length, fin), (-length, 0.04)]
        return extrude(polygon(p[2], p[1], outline), p[0], 0.012) - 0.047

    def engines(p: Coordinates) -> Distance:
        x, y, z = p[0].abs() - out, p[1] - low - rise * out + 0.085, p[2] - plane - 0.02
        return round_cone((x, y, z), (0.0, 0.0, 0.06), (0.0, 0.0, -0.12), pod, 0.75 * pod)

    def intakes(p: Coordinates) -> Distance:
        x, y, z = p[0].abs() - out, p[1] - low - rise * out + 0.085, p[2] - plane - 0.02
        return box2(norm(x, y), z - 0.10, (0.72 * pod, 0.045), 0.02)

    def windscreen(p: Coordinates) -> Distance:
        band = box(p, (0.0, 0.45 * girth, length - 0.17), (0.3, 0.30 * girth, 0.085), 0.02)
        return smooth_intersection(fuselage(p) - 0.014, band, 0.01)

    white = tint(draw, draw.usually(colour("#eef0f2"), (colour("#d4dae0"),), 0.8), 0.04)
    trim = tint(draw, draw.usually(colour("#cf2a22"), PAINTS, 0.45))

    def livery(p: Coordinates) -> Tensor:
        """Dark round windows in a row on either side, over a stripe."""
        step = 0.125
        off = norm(torch.remainder(p[2], step) - step / 2, p[1] - 0.30 * girth)
        pane = (off < 0.038) & (p[2].abs() < 0.36)
        stripe = (p[1] + 0.12 * girth).abs() < 0.16 * girth
        skin = torch.where(stripe[:, None], plain(trim)(p), plain(white)(p))
        return torch.where(pane[:, None], plain(colour("#37475a"))(p), skin)

    parts = (
        Part("fuselage", fuselage, livery, 0.4),
        Part("wings", lambda p: smooth_intersection(wing(p), tip(p), 0.01), plain(shade(white, 0.85)), 0.4),
        Part("wing tips", lambda p: smooth_intersection(wing(p), -tip(p), 0.01), plain(trim), 0.4),
        Part("tailplane", tailplane, plain(trim), 0.4),
        Part("tail fin", tail, plain(trim), 0.4),
        Part("engines", engines, plain(shade(white, 0.7)), 0.4, 0.3),
        Part("intakes", intakes, plain(colour("#3a3d42")), 0.6),
        Part("windscreen", windscreen, plain(colour("#2c3a4b")), 0.3),
    )
    return place("airplane", parts)


def boat(draw: Draw) -> ProceduralObject:
    """A tug: a coloured hull with a pointed bow and a rim, a white cabin with windows, a striped funnel."""
    half, length = draw.vary(0.33, 0.06), draw.vary(0.75, 0.05)
    deep, sheer = draw.vary(0.34, 0.07), draw.uniform(0.14, 0.20)
    house, back = draw.vary(0.20, 0.07), draw.uniform(-0.26, -0.18)
    tall, long = draw.vary(0.34, 0.08), draw.vary(0.24, 0.08)
    pipe, stack = draw.uniform(0.095, 0.11), draw.uniform(0.26, 0.34)
    plan = [
        (0.0, length),
        (0.45 * half, 0.70 * length),
        (0.82 * half, 0.35 * length),
        (half, -0.1 * length),
        (0.94 * half, -0.7 * length),
        (0.6 * half, -length),
    ]
    outline = [*plan, *[(-x, z) for x, z in reversed(plan) if x]]

    def deck(p: Coordinates) -> Distance:
        """Height above the deck, which rises to the bow and less to the stern."""
        z = (p[2] / length).clamp(-1.1, 1.1)
        return (p[1] - sheer * z * z * (0.7 + 0.3 * z)) * 0.85

    def footprint(p: Coordinates) -> Distance:
        return polygon(p[0], p[2], outline) - 0.03

    def hull(p: Coordinates) -> Distance:
        # Walls that lean in towards the keel, a raked bow, a flat bottom.
        wall = 0.92 * (p[0].abs() - half) - 0.4 * p[1] - 0.04
        rake = 0.8 * (p[2] - length) - 0.6 * p[1] + 0.02
        solid = smooth_intersection(smooth_intersection(wall, rake, 0.06), -(p[1] + deep), 0.12)
        solid = smooth_intersection(solid, footprint(p), 0.04)
        return smooth_intersection(solid, deck(p), 0.03)

    def rim(p: Coordinates) -> Distance:
        return norm(footprint(p) + 0.02, deck(p)) - 0.055

    def planks(p: Coordinates) -> Distance:
        return smooth_intersection(footprint(p) + 0.03, deck(p).abs() - 0.02, 0.02)

    def cabin(p: Coordinates) -> Distance:
        return box(p, (0.0, tall / 2, back), (house, tall / 2 + 0.04, long), 0.04)

    def roof(p: Coordinates) -> Distance:
        return box(p, (0.0, tall + 0.03, back + 0.02), (house + 0.06, 0.055, long + 0.07), 0.04)

    def panes(p: Coordinates) -> Distance:
        x, y, z = p[0].abs(), p[1] - 0.62 * tall, p[2] - back
        front = extrude(box2(x - 0.47 * house, y, (0.38 * house, 0.075), 0.02), z.abs() - long, 0.018)
        sides = extrude(norm(z.abs() - 0.45 * long, y) - 0.075, x - house, 0.02)
        return union(front, sides)

    def funnel(p: Coordinates, low: float, high: float, grow: float) -> Distance:
        middle, size = tall + (low + high) / 2, (high - low) / 2
        return cylinder(p, (0.0, middle, back - 0.25 * long), pipe + grow, size, 0.02)

    paint = tint(draw, draw.usually(colour("#c52a22"), PAINTS, 0.45))
    white, wood = tint(draw, colour("#ece8dc"), 0.05), tint(draw, colour("#b98a52"))
    trim = tint(draw, draw.usually(colour("#e3a42f"), (colour("#2f6db5"), colour("#c52a22")), 0.6))

    def planking(p: Coordinates) -> Tensor:
        """The paint, and a darker bottom below the water line."""
        return mix(shade(paint, 0.35), paint, ramp(p[1], -0.52 * deep, -0.48 * deep))

    parts = (
        Part("hull", hull, planking, 0.45),
        Part("deck", planks, plain(wood), 0.75),
        Part("rim", rim, plain(white), 0.5),
        Part("cabin", cabin, plain(white), 0.55),
        Part("roof", roof, plain(shade(paint, 0.9)), 0.5),
        Part("windows", panes, plain(colour("#3f5f80")), 0.3),
        Part("funnel", lambda p: funnel(p, 0.0, stack, 0.0), plain(trim), 0.5),
        Part("soot", lambda p: funnel(p, stack - 0.09, stack + 0.02, 0.015), plain(colour("#35353a")), 0.8),
    )
    return place("boat", parts)
