"""Categories airplane and boat. The nose and the bow point to +z."""

import torch
from torch import Tensor

from dataset.procedural.colour import colour, mix, over, plain, ramp, shade, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    box,
    cylinder,
    extrude,
    mirror_x,
    norm,
    polygon,
    round_cone,
    smooth_intersection,
    smooth_union,
    torus,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

PAINTS = tuple(colour(c) for c in ("#2b62c4", "#e5762a", "#3a9b56", "#eebd24"))
GLASS = colour("#26323f")


def airplane(draw: Draw) -> ProceduralObject:
    """Return an airliner with a row of windows, swept wings, engines below the wings and a tall tail fin."""
    girth, length = draw.vary(0.105, 0.06), draw.vary(0.74, 0.04)
    span, root, tip = draw.vary(0.70, 0.05), draw.uniform(0.15, 0.17), draw.uniform(0.055, 0.07)
    sweep, rise = draw.uniform(0.30, 0.42), draw.uniform(0.06, 0.12)
    fin = draw.vary(0.27, 0.08)
    plane, low = draw.uniform(0.02, 0.08), -0.5 * girth
    pod = draw.uniform(0.062, 0.07)
    spots_out = draw.usually((0.36,), ((0.30, 0.56),), 0.6)  # |x| of the engines, in units of span

    def fuselage(p: Coordinates) -> Distance:
        nose, tail = (0.0, -0.02, length - 0.07), (0.0, 0.5 * girth, -length)
        front = round_cone(p, (0.0, 0.0, length - 0.22), nose, girth, 0.55 * girth)
        tube = round_cone(p, (0.0, 0.0, length - 0.22), (0.0, 0.0, -0.28), girth, girth)
        rear = round_cone(p, (0.0, 0.0, -0.28), tail, girth, 0.35 * girth)
        return smooth_union(union(front, tube), rear, 0.04)

    def wings(p: Coordinates) -> Distance:
        x = p[0].abs()
        outline = [
            (0.0, plane + root),
            (0.30 * span, plane + root - 0.42 * sweep),
            (span, plane - sweep + tip),
            (span, plane - sweep - tip),
            (0.30 * span, plane - root + 0.02),
            (0.0, plane - root - 0.03),
        ]
        level = p[1] - low - rise * x
        return extrude(polygon(x, p[2], outline), level, 0.008) * 0.97 - 0.028

    def tailplane(p: Coordinates) -> Distance:
        x = p[0].abs()
        outline = [(0.0, 0.20 - length), (0.27, 0.02 - length), (0.27, -0.07 - length), (0.0, 0.02 - length)]
        return extrude(polygon(x, p[2], outline), p[1] - 0.5 * girth, 0.008) - 0.026

    def tail(p: Coordinates) -> Distance:
        outline = [(0.30 - length, 0.05), (0.06 - length, fin), (-0.07 - length, fin), (0.03 - length, 0.05)]
        return extrude(polygon(p[2], p[1], outline), p[0], 0.008) - 0.028

    def at_engine(p: Coordinates) -> tuple[Tensor, Tensor, Tensor]:
        """Return the coordinates relative to the centre of the nearest engine."""
        x = p[0].abs()
        out = torch.full_like(x, spots_out[0] * span)
        if len(spots_out) > 1:
            out = torch.where(x > span * sum(spots_out) / 2, spots_out[1] * span, out)
        y = p[1] - low - rise * out + pod + 0.02
        return x - out, y, p[2] - plane - root + 0.02 + 0.62 * sweep * out / span * 1.4

    def engines(p: Coordinates) -> Distance:
        x, y, z = at_engine(p)
        shell = round_cone((x, y, z), (0.0, 0.0, 0.04), (0.0, 0.0, -0.12), pod, 0.7 * pod)
        shell = smooth_intersection(shell, z.abs() - 0.11, 0.02)
        return (
            torch.minimum(shell, torch.maximum(norm(x, z + 0.02) - 0.05, (y - 0.5 * pod).abs() - 0.05)) * 0.97
        )

    white = tint(draw, draw.usually(colour("#eef0f2"), (colour("#d4dae0"),), 0.8), 0.04)
    trim = tint(draw, draw.usually(colour("#cf2a22"), PAINTS, 0.45))
    belly = draw.usually(shade(white, 0.7), (trim, white), 0.5)
    striped = draw.chance(0.6)
    step = draw.uniform(0.062, 0.072)

    def livery(p: Coordinates) -> Tensor:
        """Return the albedo of the fuselage: side windows, a stripe below them, a windscreen, doors."""
        skin = over(plain(white)(p), belly, ramp(p[1], -0.42 * girth, -0.48 * girth))
        if striped:
            skin = over(skin, trim, ramp((p[1] + 0.22 * girth).abs(), 0.21 * girth, 0.15 * girth))
        cabin = ramp(p[2].abs(), length - 0.24, length - 0.25)
        across = (torch.remainder(p[2], step) - step / 2).abs() - 0.004
        pane = ramp(norm(across.clamp(min=0), p[1] - 0.28 * girth), 0.021, 0.015) * ramp(
            p[0].abs(), 0.5 * girth, 0.6 * girth
        )
        skin = over(skin, GLASS, pane * cabin)
        door = torch.maximum((p[2].abs() - length + 0.215).abs() - 0.022, (p[1] - 0.1 * girth).abs() - 0.055)
        skin = over(
            skin,
            shade(white, 0.5),
            ramp(door.abs(), 0.009, 0.004) * ramp(p[0].abs(), 0.4 * girth, 0.5 * girth),
        )
        screen = ramp((p[1] - 0.42 * girth).abs(), 0.26 * girth, 0.20 * girth) * ramp(
            p[2], length - 0.17, length - 0.155
        )
        screen = screen * ramp(p[0].abs(), 0.004, 0.009)
        return over(skin, GLASS, screen)

    def wing_paint(p: Coordinates) -> Tensor:
        """Return the albedo of the wings: grey, with dark lines along the flaps and coloured ends."""
        x = p[0].abs()
        metal = plain(shade(white, 0.72))(p)
        hinge = (p[2] - plane + root - 0.075 + 0.55 * sweep * x / span).abs()
        metal = over(
            metal, shade(white, 0.42), ramp(hinge, 0.009, 0.005) * ramp(x, girth + 0.02, girth + 0.03)
        )
        return over(metal, trim, ramp(x, 0.93 * span, 0.94 * span))

    def nacelle(p: Coordinates) -> Tensor:
        """Return the albedo of the engines: a dark intake with a bright cone, and a dark exhaust."""
        x, y, z = at_engine(p)
        radius = norm(x, y)
        skin = over(plain(trim if striped else white)(p), shade(white, 0.9), ramp(z, 0.05, 0.06))
        hole = ramp(z, 0.095, 0.10) * ramp(radius, 0.84 * pod, 0.76 * pod)
        skin = over(skin, colour("#1f2226"), torch.maximum(hole, ramp(z, -0.10, -0.105)))
        return over(skin, shade(white, 0.8), hole * ramp(radius, 0.25 * pod, 0.18 * pod))

    def tail_paint(p: Coordinates) -> Tensor:
        mark = norm(p[1] - 0.68 * fin, p[2] + length - 0.08)
        return over(plain(trim)(p), white, ramp(mark, 0.05, 0.044))

    parts = (
        Part("fuselage", fuselage, livery, 0.4),
        Part("wings", wings, wing_paint, 0.4),
        Part("tailplane", tailplane, plain(shade(white, 0.72)), 0.4),
        Part("tail fin", tail, tail_paint, 0.4),
        Part("engines", engines, nacelle, 0.4, 0.2),
    )
    return place("airplane", parts)


def boat(draw: Draw) -> ProceduralObject:
    """Return a fishing boat with a raised bow, a bulwark around the deck, a wheelhouse, a mast and a boom."""
    half, length = draw.vary(0.27, 0.06), draw.vary(0.75, 0.04)
    deep, sheer = draw.vary(0.26, 0.07), draw.uniform(0.17, 0.23)
    house, back = draw.vary(0.165, 0.07), draw.usually(-0.30, (0.14,), 0.65) + draw.uniform(-0.05, 0.05)
    tall, long = draw.vary(0.30, 0.08), draw.vary(0.20, 0.08)
    mast = draw.vary(0.62, 0.06)
    ahead = 0.28 if back < 0 else -0.34  # z of the mast
    plan = [
        (0.0, length),
        (0.42 * half, 0.74 * length),
        (0.80 * half, 0.40 * length),
        (half, -0.05 * length),
        (0.95 * half, -0.7 * length),
        (0.72 * half, -length),
    ]
    outline = [*plan, *[(-x, z) for x, z in reversed(plan) if x]]

    def deck(p: Coordinates) -> Distance:
        """Return the signed distance to the curved surface at the rim's height, negative below the surface.

        The rim rises towards the bow and the stern, but less towards the stern.
        """
        z = (p[2] / length).clamp(-1.1, 1.1)
        return (p[1] - sheer * z * z * (0.65 + 0.35 * z)) * 0.85

    def footprint(p: Coordinates) -> Distance:
        return polygon(p[0], p[2], outline) - 0.03

    def hull(p: Coordinates) -> Distance:
        # The walls lean inwards towards the keel, the bow is inclined and the bottom is flat. The deck is
        # below the rim.
        wall = 0.90 * (p[0].abs() - half) - 0.42 * p[1] - 0.04
        rake = 0.8 * (p[2] - length) - 0.6 * p[1] + 0.02
        plane = footprint(p)
        solid = smooth_intersection(smooth_intersection(wall, rake, 0.06), -(p[1] + deep), 0.10)
        solid = smooth_intersection(solid, plane, 0.04)
        well = torch.maximum(plane + 0.055, -(deck(p) + 0.07))
        return torch.maximum(smooth_intersection(solid, deck(p), 0.02), -well)

    def rim(p: Coordinates) -> Distance:
        return norm(footprint(p) + 0.02, deck(p)) - 0.038

    def cabin(p: Coordinates) -> Distance:
        return box(p, (0.0, tall / 2 - 0.05, back), (house, tall / 2 + 0.07, long), 0.03)

    def roof(p: Coordinates) -> Distance:
        return box(p, (0.0, tall + 0.02, back + 0.02), (house + 0.045, 0.035, long + 0.055), 0.03)

    def rigging(p: Coordinates) -> Distance:
        """Return the distance to a mast, a boom and a short yard, all thick enough for a coarse grid."""
        pole = round_cone(p, (0.0, -0.05, ahead), (0.0, mast, ahead), 0.036, 0.030)
        towards = 1.0 if back < 0 else -1.0
        boom = round_cone(p, (0.0, 0.14, ahead), (0.0, 0.42, ahead + 0.34 * towards), 0.032, 0.028)
        yard = round_cone(mirror_x(p), (0.0, 0.9 * mast, ahead), (0.07, 0.9 * mast, ahead), 0.028, 0.026)
        return union(pole, boom, yard)

    def funnel(p: Coordinates) -> Distance:
        return cylinder(p, (0.0, tall + 0.13, back - 0.3 * long), 0.062, 0.12, 0.015)

    def buoys(p: Coordinates) -> Distance:
        x, y, z = p[0].abs() - house - 0.01, p[1] - 0.40 * tall, p[2] - back + 0.45 * long
        return torus((y, x, z), (0.0, 0.0, 0.0), 0.062, 0.028)

    paint = tint(draw, draw.usually(colour("#c52a22"), (*PAINTS, colour("#ece8dc")), 0.4))
    white, wood = tint(draw, colour("#ece8dc"), 0.05), tint(draw, colour("#b98a52"))
    trim = tint(draw, draw.usually(colour("#e3a42f"), (colour("#2f6db5"), colour("#c52a22")), 0.6))
    keel = tint(draw, draw.usually(colour("#33363c"), (colour("#8a2a20"),), 0.6))
    holes = draw.chance(0.5)

    def planking(p: Coordinates) -> Tensor:
        """Return the albedo of the hull: a dark bottom, a white water line, portholes, a deck of boards."""
        skin = over(plain(paint)(p), keel, ramp(p[1], -0.50 * deep, -0.52 * deep))
        skin = over(skin, white, ramp((p[1] + 0.47 * deep).abs(), 0.026, 0.020))
        seam = (torch.remainder(deck(p) / 0.075 + 0.5, 1.0) - 0.5).abs() * 0.075
        skin = over(skin, shade(paint, 0.6), ramp(seam, 0.008, 0.004) * ramp(p[1], -0.4 * deep, -0.38 * deep))
        if holes:
            off = norm(torch.remainder(p[2], 0.17) - 0.085, deck(p) + 0.105)
            hole = ramp(off, 0.030, 0.024) * ramp((p[2] - 0.3).abs(), 0.26, 0.25)
            skin = over(skin, GLASS, hole)
        boards = (torch.remainder(p[0] / 0.07 + 0.5, 1.0) - 0.5).abs() * 0.07
        planks = over(plain(wood)(p), shade(wood, 0.55), ramp(boards, 0.009, 0.004))
        inside = (ramp(footprint(p), -0.045, -0.05) * ramp(deck(p), -0.09, -0.085))[:, None]
        return skin + inside * (planks - skin)

    def superstructure(p: Coordinates) -> Tensor:
        """Return the albedo of the wheelhouse: white, with dark windows, posts and a door at the back."""
        wall = plain(white)(p)
        aside = p[0].abs() > house - 0.012
        along = torch.where(aside, (p[2] - back) / long, p[0] / house)
        width = torch.where(aside, torch.full_like(along, long), torch.full_like(along, house))
        post = (torch.remainder(along * 1.5 + 0.5, 1.0) - 0.5).abs() / 1.5 * width
        pane = ramp((p[1] - 0.70 * tall).abs(), 0.062, 0.055) * ramp(post, 0.013, 0.019)
        pane = pane * ramp(along.abs(), 0.93, 0.88)
        wall = over(wall, GLASS, pane)
        door = torch.maximum(p[0].abs() - 0.055, (p[1] - 0.35 * tall).abs() - 0.14)
        wall = over(wall, wood, ramp(door, 0.0, -0.006) * ramp(p[2], back - 0.9 * long, back - 0.95 * long))
        return over(wall, trim, ramp((p[1] - 0.16 * tall).abs(), 0.022, 0.016))

    def smoke_stack(p: Coordinates) -> Tensor:
        pipe = over(plain(trim)(p), colour("#2c2c30"), ramp(p[1], tall + 0.19, tall + 0.2))
        return over(pipe, white, ramp((p[1] - tall - 0.12).abs(), 0.028, 0.022))

    def ring_paint(p: Coordinates) -> Tensor:
        turn = torch.atan2(p[1] - 0.40 * tall, p[2] - back + 0.45 * long)
        return mix(colour("#e8542a"), white, ramp(torch.cos(4 * turn), 0.3, 0.45))

    parts = [
        Part("hull", hull, planking, 0.45),
        Part("rim", rim, plain(white if max(paint) < 0.8 else trim), 0.5),
        Part("cabin", cabin, superstructure, 0.5),
        Part("roof", roof, plain(draw.usually(shade(paint, 0.9), (white,), 0.6)), 0.5),
        Part("mast", rigging, plain(draw.usually(wood, (white,), 0.6)), 0.6),
        Part("lifebuoys", buoys, ring_paint, 0.6),
    ]
    if draw.chance(0.5):
        parts.append(Part("funnel", funnel, smoke_stack, 0.5))
    return place("boat", tuple(parts))
