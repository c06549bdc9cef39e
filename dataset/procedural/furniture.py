"""Categories chair, table, lamp and bed.

The chair's back and the bed's pillows are at −z. The table is longer along x. The lamp is rotationally
symmetric about +y.
"""

from torch import Tensor

from dataset.procedural.colour import colour, grain, mix, plain, ramp, shade, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    box,
    cylinder,
    ellipsoid,
    mirror_x,
    polygon,
    revolve,
    round_cone,
    shift,
    smooth_intersection,
    smooth_union,
    sphere,
    turn_x,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

WOODS = tuple(colour(c) for c in ("#c09660", "#7a4c2c"))
PAINTS = tuple(colour(c) for c in ("#c8342a", "#2f6db5", "#e8e2d4", "#4b9b55", "#e3a42f"))


def chair(draw: Draw) -> ProceduralObject:
    """Return a chair with four legs, a seat, a back that is solid or has rungs, and sometimes a cushion."""
    width, depth = draw.vary(0.38, 0.07), draw.vary(0.36, 0.07)
    leg, thick = draw.uniform(0.064, 0.072), draw.uniform(0.062, 0.072)
    height, rise = draw.vary(0.56, 0.07), draw.vary(0.70, 0.07)
    slope, splay = draw.uniform(0.03, 0.14), draw.uniform(0.0, 0.05)
    rungs, cushion = draw.chance(0.35), draw.chance(0.35)

    def legs(p: Coordinates) -> Distance:
        top = (width - leg, 0.0, depth - leg)
        bottom = (width - leg + splay, -height, depth - leg + splay)
        # abs(x) and abs(z) repeat one leg at the four corners of the seat, which connects the legs.
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
    albedo = grain(base, 0.28) if wooden else plain(base)
    fabric = plain(tint(draw, draw.usually(colour("#b8322e"), PAINTS)))
    finish = draw.uniform(0.45, 0.7)
    solids = (("legs", legs), ("seat", seat), ("back", back))
    parts = tuple(Part(name, distance, albedo, finish) for name, distance in solids)
    return place("chair", (*parts, Part("cushion", pad, fabric, 0.9)) if cushion else parts)


def table(draw: Draw) -> ProceduralObject:
    """Return a table: a rectangular or sometimes round top, an apron and four straight or splayed legs."""
    circular = draw.chance(0.3)
    width, depth = draw.uniform(0.62, 0.72), draw.uniform(0.40, 0.48)
    radius = draw.uniform(0.55, 0.62)
    thick, leg = draw.uniform(0.052, 0.065), draw.uniform(0.066, 0.080)
    height, square = draw.uniform(0.60, 0.72), draw.chance(0.5) and not circular
    inset = draw.uniform(0.0, 0.04)
    corner = (0.62 * radius, 0.62 * radius) if circular else (width - leg - inset, depth - leg - inset)
    splay = 0.08 if circular else draw.uniform(0.0, 0.05)

    def top(p: Coordinates) -> Distance:
        if circular:
            return cylinder(p, (0.0, 0.0, 0.0), radius, thick, 0.04)
        return box(p, (0.0, 0.0, 0.0), (width, thick, depth), 0.03)

    def frame(p: Coordinates) -> Distance:
        """Return the distance to the apron and the legs. abs(x) and abs(z) repeat one leg four times."""
        apron = box(p, (0.0, -thick - 0.03, 0.0), (corner[0], 0.08, corner[1]), 0.02)
        quarter = (p[0].abs(), p[1], p[2].abs())
        if square:
            return union(
                apron, box(quarter, (corner[0], -0.5 * height, corner[1]), (leg, 0.5 * height, leg), 0.02)
            )
        foot = (corner[0] + splay, leg - height, corner[1] + splay)
        hip = (corner[0], -0.5 * leg, corner[1])
        return union(apron, round_cone(quarter, hip, foot, leg * 1.1, leg * 0.9))

    wooden, alike = draw.chance(0.8), draw.chance(0.7)
    wood = tint(draw, draw.usually(colour("#a56c38"), WOODS, 0.6))
    paint = tint(draw, draw.usually(PAINTS[2], PAINTS, 0.4))
    board = grain(wood, 0.25) if wooden else plain(paint)

    def lengthwise(p: Coordinates) -> Tensor:
        return board((p[2], p[1], p[0]))

    finish = draw.uniform(0.4, 0.65)
    parts = (
        Part("top", top, lengthwise, finish),
        Part("frame", frame, board if alike else plain(paint), finish),
    )
    return place("table", parts)


def lamp(draw: Draw) -> ProceduralObject:
    """Return a lamp: a shade that is open at the bottom, a bulb, and a pole or a bulbous stand."""
    wide, narrow = draw.uniform(0.42, 0.50), draw.uniform(0.20, 0.32)
    shade_height, pole = draw.uniform(0.46, 0.56), draw.uniform(0.060, 0.070)
    height, foot = draw.uniform(0.62, 0.74), draw.uniform(0.27, 0.33)
    bellied = draw.chance(0.4)
    wall = 0.09
    # The shade's lower edge is at y = 0. Both outlines extend across the axis, because the distance would be
    # 0 along an edge on the axis. `cover` enlarges `cone` by `edge`.
    edge, ceiling = 0.02, 0.55 * shade_height
    cone = [
        (-0.3, edge),
        (wide - edge, edge),
        (narrow - edge, shade_height - edge),
        (-0.3, shade_height - edge),
    ]
    inner = wide + (narrow - wide) * 0.55 - wall
    hollow = [(-0.3, -0.2), (wide - wall, -0.2), (wide - wall, 0.0), (inner, ceiling), (-0.3, ceiling)]

    def cover(p: Coordinates) -> Distance:
        r, y = revolve(p)
        return smooth_intersection(polygon(r, y, cone, edge), -polygon(r, y, hollow), 0.05)

    def stand(p: Coordinates) -> Distance:
        plate = cylinder(p, (0.0, 0.055 - height, 0.0), foot, 0.055, 0.035)
        rod = round_cone(p, (0.0, 0.06 - height, 0.0), (0.0, ceiling, 0.0), pole, pole)
        if not bellied:
            return smooth_union(plate, rod, 0.10)
        pot = ellipsoid(p, (0.0, 0.30 - height, 0.0), (0.24, 0.24, 0.24))
        return smooth_union(smooth_union(plate, pot, 0.06), rod, 0.10)

    def bulb(p: Coordinates) -> Distance:
        return sphere(p, (0.0, 0.10, 0.0), 0.14)

    cloth = tint(draw, draw.usually(colour("#f2e3b8"), PAINTS, 0.55), 0.06)
    metal = draw.chance(0.5) and not bellied
    base = (
        draw.usually(colour("#b98a3c"), (colour("#3c3f46"),))
        if metal
        else draw.usually(PAINTS[1], PAINTS, 0.3)
    )

    def lit(p: Coordinates) -> Tensor:
        """Return the albedo of the shade, which is brighter near the bulb."""
        return mix(shade(cloth, 1.25), shade(cloth, 0.85), ramp(p[1], 0.0, shade_height))

    parts = (
        Part("shade", cover, lit, 0.85),
        Part(
            "stand", stand, plain(tint(draw, base)), draw.uniform(0.35, 0.5), draw.uniform(0.4, 0.7) * metal
        ),
        Part("bulb", bulb, plain(colour("#fff3c4")), 0.4),
    )
    return place("lamp", parts)


def bed(draw: Draw) -> ProceduralObject:
    """Return a bed with a high headboard at −z, a low footboard, a mattress, a blanket and pillows."""
    width, length = draw.uniform(0.42, 0.54), draw.uniform(0.68, 0.76)
    head, foot = draw.uniform(0.46, 0.56), draw.uniform(0.20, 0.28)
    drop, deep = draw.uniform(0.24, 0.30), draw.uniform(0.09, 0.11)
    start = -length + draw.uniform(0.48, 0.60)
    double = width > 0.47
    top = 0.07 + 2 * deep
    arched = draw.chance(0.4)

    def boards(p: Coordinates) -> Distance:
        """Return the distance to the rails, the headboard, the footboard and the feet.

        The centre of the rails is the origin.
        """
        rails = box(p, (0.0, 0.0, 0.0), (width, 0.09, length), 0.02)
        feet = box(
            (p[0].abs(), p[1], p[2].abs()),
            (width - 0.05, -0.5 * drop, length - 0.02),
            (0.07, 0.5 * drop, 0.07),
            0.02,
        )
        half = 0.5 * (head + 0.05)
        high = box(p, (0.0, head - half, -length), (width + 0.05, half, 0.06), 0.03)
        low = box(p, (0.0, 0.5 * foot, length), (width + 0.05, 0.5 * foot + 0.05, 0.06), 0.03)
        if arched:
            bow = cylinder(
                (p[0], p[2] + length, p[1] - head), (0.0, 0.0, 0.05 - 0.62 * width), width, 0.06, 0.03
            )
            high = union(high, smooth_intersection(bow, 0.1 - p[1], 0.01))
        return union(rails, feet, high, low)

    def mattress(p: Coordinates) -> Distance:
        return box(p, (0.0, 0.07 + deep, 0.0), (width - 0.02, deep, length), 0.06)

    def cover(p: Coordinates, front: float, back: float, grow: float) -> Distance:
        middle, half = 0.5 * (front + back), 0.5 * (front - back)
        return box(p, (0.0, 0.05 + deep, middle), (width + 0.035 + grow, deep + 0.05 + grow, half), 0.06)

    def blanket(p: Coordinates) -> Distance:
        return cover(p, length - 0.03, start, 0.0)

    def fold(p: Coordinates) -> Distance:
        return cover(p, start + 0.17, start - 0.02, 0.025)

    def pillow(p: Coordinates) -> Distance:
        centre = (0.5 * width, top + 0.04, -length + 0.18) if double else (0.0, top + 0.04, -length + 0.18)
        half = (0.40 * width if double else 0.72 * width, 0.10, 0.16)
        return box(mirror_x(p) if double else p, centre, half, 0.09)

    wooden = draw.chance(0.8)
    wood = tint(draw, draw.usually(colour("#8a5a30"), WOODS, 0.6))
    timber = grain(wood, 0.25) if wooden else plain(tint(draw, draw.usually(PAINTS[2], PAINTS, 0.5)))
    cloth = tint(draw, draw.usually(colour("#2f6db5"), PAINTS, 0.5))
    striped, linen = draw.chance(0.3), tint(draw, colour("#f1eee6"), 0.04)

    def woven(p: Coordinates) -> Tensor:
        stripes = ramp((p[0] * 20).sin(), 0.3, 0.6) if striped else p[0] * 0
        return mix(cloth, shade(cloth, 0.55), stripes)

    parts = (
        Part("boards", boards, timber, draw.uniform(0.45, 0.65)),
        Part("mattress", mattress, plain(linen), 0.85),
        Part("blanket", blanket, woven, 0.9),
        Part("fold", fold, plain(tint(draw, shade(linen, 0.9), 0.05)), 0.9),
        Part("pillow", pillow, plain(linen), 0.85),
    )
    return place("bed", parts)
