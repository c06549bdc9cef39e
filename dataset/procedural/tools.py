"""Categories hammer and key.

The hammer's head is at the top with its face at +x. The key's ring is at the top, and its teeth are at +x.
"""

from dataset.procedural.colour import colour, grain, plain, shade, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    box,
    box2,
    extrude,
    norm,
    polygon,
    round_cone,
    smooth_intersection,
    smooth_union,
    sphere,
    spline,
    torus,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

GRIPS = tuple(colour(c) for c in ("#2b2d33", "#2b62c4", "#e3a42f"))
METALS = tuple(colour(c) for c in ("#c3c8ce", "#b97b45", "#5f646b"))


def hammer(draw: Draw) -> ProceduralObject:
    """Return a claw hammer: a round face at +x, a split claw at −x, a wooden handle, and sometimes a grip."""
    length, thick = draw.vary(1.02, 0.07), draw.uniform(0.068, 0.080)
    face, half = draw.uniform(0.160, 0.185), draw.uniform(0.150, 0.165)
    reach, claw = draw.uniform(0.33, 0.39), draw.uniform(0.42, 0.50)
    droop = draw.uniform(0.16, 0.24)
    # The centre of the head is the origin.
    upper = spline([(-0.05, 0.12), (-0.20, 0.11), (0.10 - 0.85 * claw, 0.02), (-claw, -droop)])
    lower = spline([(0.02 - claw, -droop - 0.03), (0.15 - 0.8 * claw, -0.09), (-0.18, -0.10), (-0.05, -0.11)])
    slit = [(-0.28, 0.0), (-claw - 0.2, 0.03), (-claw - 0.2, -0.03)]

    def handle(p: Coordinates) -> Distance:
        flat = (p[0] * 0.9, p[1], p[2])
        return round_cone(flat, (0.0, 0.11, 0.0), (0.0, -length, 0.0), thick, thick * 1.2)

    def grip(p: Coordinates) -> Distance:
        return round_cone(p, (0.0, -0.52 * length, 0.0), (0.0, -length, 0.0), thick * 1.25, thick * 1.5)

    def head(p: Coordinates) -> Distance:
        along = (p[1], p[0], p[2])  # swap x and y, because the axis of the face is x
        cheek = box(p, (0.0, 0.0, 0.0), (0.13, 0.135, half), 0.04)
        neck = box2(norm(p[1], p[2]), p[0] - 0.5 * reach, (0.72 * face, 0.5 * reach), 0.02)
        poll = box2(norm(along[0], along[2]), p[0] - reach, (face, 0.085), 0.035)
        return smooth_union(smooth_union(cheek, neck, 0.06), poll, 0.05)

    def claws(p: Coordinates) -> Distance:
        blade = extrude(polygon(p[0], p[1], [*upper, *lower]), p[2], half - 0.025) - 0.025
        return smooth_intersection(blade, -polygon(p[0], p[2], slit, 0.045), 0.02)

    def forged(p: Coordinates) -> Distance:
        return smooth_union(head(p), claws(p), 0.04)

    wood = tint(draw, draw.usually(colour("#b98046"), (colour("#8a5a30"), colour("#d2a566"))))
    gripped = draw.chance(0.5)
    steel, metal = (
        tint(draw, draw.usually(colour("#9aa0a8"), (colour("#5d626a"),), 0.7)),
        draw.uniform(0.4, 0.7),
    )
    parts = (
        Part("handle", handle, grain(wood, 0.25), draw.uniform(0.5, 0.7)),
        Part("head", forged, plain(steel), draw.uniform(0.35, 0.45), metal),
        Part("grip", grip, plain(tint(draw, draw.usually(colour("#c62a22"), GRIPS))), 0.8),
    )
    return place("hammer", parts if gripped else parts[:2])


def key(draw: Draw) -> ProceduralObject:
    """Return an old door key: a ring, a collar, a round shaft, and two or three teeth at +x."""
    width, height = draw.uniform(0.24, 0.32), draw.uniform(0.23, 0.27)
    tube, shaft = draw.uniform(0.078, 0.088), draw.uniform(0.068, 0.076)
    length = draw.vary(1.0, 0.06)
    teeth, out = draw.integer(2, 3), draw.uniform(0.30, 0.36)
    tooth, gap = (0.11, 0.17) if teeth == 2 else (0.08, 0.14)
    # The centre of the ring is the origin. `outline` is the outline of the teeth, from the lower end upwards.
    foot = -height - length + 0.05
    outline = [(0.0, foot)]
    for number in range(teeth):
        low = foot + number * (tooth + gap)
        far = out - draw.uniform(0.0, 0.07)
        outline += [(far, low), (far, low + tooth)]
        if number < teeth - 1:
            outline += [(0.13, low + tooth), (0.13, low + tooth + gap)]
    outline.append((0.0, foot + teeth * tooth + (teeth - 1) * gap))

    def bow(p: Coordinates) -> Distance:
        ring = box2(p[0], p[1], (width, height), 0.95 * min(width, height))
        return norm(ring, p[2]) - tube

    def stem(p: Coordinates) -> Distance:
        rod = round_cone(p, (0.0, -height, 0.0), (0.0, -height - length, 0.0), shaft, shaft)
        collar = torus(p, (0.0, -height - 0.15, 0.0), shaft, 0.05)
        return smooth_union(union(rod, sphere(p, (0.0, -height - length, 0.0), 1.15 * shaft)), collar, 0.04)

    def bit(p: Coordinates) -> Distance:
        return extrude(polygon(p[0], p[1], outline), p[2], 0.035) - 0.02

    def blank(p: Coordinates) -> Distance:
        return smooth_union(bow(p), stem(p), 0.08)

    metal = tint(draw, draw.usually(colour("#d8a432"), METALS, 0.6))
    gloss, shine = draw.uniform(0.3, 0.42), draw.uniform(0.5, 0.8)
    parts = (
        Part("blank", blank, plain(metal), gloss, shine),
        Part("bit", bit, plain(shade(metal, 0.85)), gloss, shine),
    )
    return place("key", parts)
