"""Categories mushroom, cactus, snowman and tree.

The mushroom and the tree have a random azimuth about +y. The arms of the cactus are at ±x. The face of the
snowman is at +z.
"""

import math

import torch
from torch import Tensor

from dataset.procedural.colour import bell, colour, mix, plain, ramp, shade, spots, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    chain,
    cylinder,
    ellipsoid,
    mirror_x,
    norm,
    round_cone,
    sectors,
    shift,
    smooth_intersection,
    smooth_union,
    sphere,
    torus,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

LEAVES = tuple(colour(c) for c in ("#6faa3a", "#2f7a3a", "#8aa83a"))


def mushroom(draw: Draw) -> ProceduralObject:
    """Return a mushroom: a spotted, hollow cap on a stem with a thick foot and sometimes a ring."""
    radius, dome = draw.vary(0.60, 0.07), draw.vary(0.50, 0.08)
    spacing, phase, spot = draw.uniform(0.60, 0.70), draw.angle(), draw.uniform(0.20, 0.23)
    brown = draw.chance(0.25)

    def spot_distance(p: Coordinates) -> Tensor:
        """Return the angle to the nearest spot, in radians, seen from the centre of the cap's base."""
        polar = torch.atan2(norm(p[0], p[2]) / radius, p[1] / dome)
        return norm(*spots(torch.atan2(p[0], p[2]), polar, spacing, phase, jitter=0.05))

    def cap(p: Coordinates) -> Distance:
        full = ellipsoid(p, (0.0, 0.0, 0.0), (radius, dome, radius))
        fade = ramp(norm(p[0], p[1], p[2]), 0.1, 0.3) * ramp(p[1], 0.0, 0.1)
        raised = 0.03 * ramp(spot_distance(p), spot + 0.03, spot - 0.09) * fade
        hollow = ellipsoid(p, (0.0, -0.10, 0.0), (0.88 * radius, 0.22, 0.88 * radius))
        bowl = smooth_intersection(full - raised, -hollow, 0.06)
        return smooth_intersection(bowl, -p[1] - 0.07, 0.10) * 0.85

    length, thick = draw.vary(0.66, 0.08), draw.vary(0.155, 0.1)
    foot, lean = draw.vary(0.21, 0.1), draw.uniform(0.0, 0.05)
    ring = draw.chance(0.5)

    def stem(p: Coordinates) -> Distance:
        shaft = round_cone(p, (lean, -length, 0.0), (0.0, 0.18, 0.0), thick * 1.1, thick * 0.9)
        bulb = ellipsoid(p, (lean, -length, 0.0), (foot, 0.17, foot))
        solid = smooth_union(shaft, bulb, 0.12)
        collar = torus(p, (0.3 * lean, -0.2, 0.0), thick, 0.05)
        return smooth_union(solid, collar, 0.06) if ring else solid

    red, cream = tint(draw, colour("#cf2318")), tint(draw, colour("#efe3c8"), 0.06)
    top = tint(draw, colour("#9a6236")) if brown else red
    white = tint(draw, colour("#f2ece0"), 0.04)
    gills = tint(draw, colour("#dcc6a0"), 0.06)

    def skin(p: Coordinates) -> Tensor:
        outside = ellipsoid(p, (0.0, 0.0, 0.0), (radius, dome, radius))
        above = (ramp(outside, -0.05, -0.035) * ramp(p[1], 0.0 - 0.07, 0.0 - 0.05))[:, None]
        painted = mix(white, top, ramp(spot_distance(p), spot - 0.02, spot + 0.02))
        azimuth = torch.atan2(p[0], p[2])
        under = mix(gills, cream, bell(torch.remainder(azimuth * 24 / torch.pi, 2) - 1, 1.0))
        return painted * above + under * (1 - above)

    parts = (
        Part("cap", cap, skin, roughness=draw.uniform(0.35, 0.5)),
        Part(
            "stem",
            stem,
            lambda p: mix(gills, cream, ramp(p[1], -length - 0.1, -0.2)),
            draw.uniform(0.7, 0.85),
        ),
    )
    return place("mushroom", parts, draw.angle())


def cactus(draw: Draw) -> ProceduralObject:
    """Return a cactus: a ribbed column with an arm on each side in a clay pot, sometimes with a flower."""
    thick, tall = draw.vary(0.20, 0.07), draw.vary(0.80, 0.06)
    ribs, depth = draw.integer(9, 11), draw.uniform(0.016, 0.022)
    arms = [
        (side, draw.uniform(low, low + 0.08), draw.vary(0.36, 0.06), draw.vary(0.30, 0.12))
        for side, low in draw.usually(((1, 0.20), (-1, 0.36)), (((1, 0.36), (-1, 0.20)),))
    ]
    arm = draw.vary(0.105, 0.06)
    rim, foot, deep = draw.vary(0.32, 0.05), draw.vary(0.23, 0.05), draw.vary(0.40, 0.06)

    def flutes(p: Coordinates) -> Tensor:
        """Return the height of the column's ribs in [−1, 1].

        The height is reduced to 0 towards the axis, where the ribs meet.
        """
        return torch.cos(torch.atan2(p[0], p[2]) * ribs) * ramp(norm(p[0], p[2]), 0.02, 0.2)

    def plant(p: Coordinates) -> Distance:
        trunk = round_cone(p, (0.0, -0.15, 0.0), (0.0, tall - thick, 0.0), thick * 0.95, thick)
        solid = (trunk - depth * flutes(p)) * 0.85
        for side, low, out, up in arms:
            elbow, hand = (side * out, low + 0.03, 0.0), (side * (out + 0.02), low + up, 0.0)
            limb = chain(p, [(0.0, low, 0.0), elbow, hand], (arm, arm, 0.95 * arm))
            solid = smooth_union(solid, limb, 0.06)
        return solid

    def pot(p: Coordinates) -> Distance:
        wall = smooth_intersection(
            (norm(p[0], p[2]) - rim - (p[1] + 0.05) * (rim - foot) / deep) * 0.95,
            (p[1] + 0.05 + deep / 2).abs() - deep / 2,
            0.05,
        )
        return smooth_union(wall, cylinder(p, (0.0, -0.08, 0.0), rim + 0.05, 0.07, 0.03), 0.02)

    def soil(p: Coordinates) -> Distance:
        return cylinder(p, (0.0, -0.08, 0.0), rim - 0.05, 0.085, 0.02)

    def flower(p: Coordinates) -> Distance:
        return sphere(sectors(shift(p, (0.0, tall, 0.0)), 5), (0.0, 0.0, 0.07), 0.07)

    green = tint(draw, colour("#4a9148"))

    def skin(p: Coordinates) -> Tensor:
        return mix(shade(green, 0.55), green, ramp(flutes(p), -0.9, 0.3))

    parts = (
        Part("plant", plant, skin, draw.uniform(0.55, 0.75)),
        Part(
            "pot",
            pot,
            plain(tint(draw, draw.usually(colour("#bd6238"), (colour("#dcd4c4"), colour("#4a78a8")), 0.7))),
            0.8,
        ),
        Part("soil", soil, plain(tint(draw, colour("#5b4130"))), 0.9),
        Part("flower", flower, plain(tint(draw, colour("#e0569a"))), 0.6),
    )
    return place("cactus", parts if draw.chance(0.4) else parts[:3])


def snowman(draw: Draw) -> ProceduralObject:
    """Return a snowman: three snowballs, a carrot, coals, wooden arms, and usually a hat and a scarf."""
    low, mid, head = draw.vary(0.38, 0.05), draw.vary(0.29, 0.05), draw.vary(0.22, 0.05)
    belly = low + 0.62 * mid
    chin = belly + 0.70 * mid
    face = chin + 0.62 * head
    wave, hatted, scarfed = draw.uniform(0.02, 0.20), draw.chance(0.8), draw.chance(0.65)

    def snow(p: Coordinates) -> Distance:
        balls = smooth_union(sphere(p, (0.0, 0.0, 0.0), low), sphere(p, (0.0, belly, 0.0), mid), 0.05)
        return smooth_union(balls, sphere(p, (0.0, face, 0.0), head), 0.04)

    def carrot(p: Coordinates) -> Distance:
        return round_cone(p, (0.0, face, head - 0.06), (0.0, face - 0.02, head + 0.19), 0.068, 0.03)

    def coals(p: Coordinates) -> Distance:
        x, y, z = mirror_x(p)
        eyes = sphere((x, y, z), (0.09, face + 0.05, 0.88 * head), 0.05)
        buttons = [
            sphere(p, (0.0, belly + mid * math.sin(a), mid * math.cos(a)), 0.052) for a in (0.45, -0.05)
        ]
        return union(eyes, *buttons)

    def arms(p: Coordinates) -> Distance:
        x, y, z = mirror_x(p)
        hand = (mid + 0.25, belly + 0.12 + wave, 0.04)
        fork = round_cone(
            (x, y, z),
            (mid + 0.15, belly + 0.11 + 0.66 * wave, 0.03),
            (mid + 0.19, belly + 0.30 + wave, 0.03),
            0.055,
            0.05,
        )
        return union(round_cone((x, y, z), (0.5 * mid, belly + 0.04, 0.0), hand, 0.060, 0.055), fork)

    def hat(p: Coordinates) -> Distance:
        top = face + 0.74 * head
        brim = cylinder(p, (0.0, top, 0.0), head + 0.07, 0.05, 0.04)
        return smooth_union(brim, cylinder(p, (0.0, top + 0.13, 0.0), 0.80 * head, 0.16, 0.03), 0.03)

    def scarf(p: Coordinates) -> Distance:
        ring = torus(p, (0.0, chin - 0.01, 0.0), 0.72 * head + 0.03, 0.07)
        end = round_cone(p, (0.10, chin - 0.03, 0.72 * head), (0.13, chin - 0.30, 0.95 * mid), 0.06, 0.065)
        return smooth_union(ring, end, 0.03)

    dark = tint(draw, colour("#37373c"))
    cloth = tint(draw, draw.usually(colour("#c22a2a"), (colour("#2f6db5"), colour("#3f9a57")), 0.6))
    parts = [
        Part("snow", snow, plain(tint(draw, colour("#e6ebf0"), 0.05)), 0.85),
        Part("carrot", carrot, plain(tint(draw, colour("#e9822a"))), 0.6),
        Part("coals", coals, plain(dark), 0.7),
        Part("arms", arms, plain(tint(draw, colour("#6f4a2a"))), 0.85),
    ]
    if hatted:
        parts.append(Part("hat", hat, plain(dark), 0.75))
    if scarfed:
        parts.append(Part("scarf", scarf, plain(cloth), 0.9))
    return place("snowman", tuple(parts))


def tree(draw: Draw) -> ProceduralObject:
    """Return a tree: a crown of leafy balls on a forked trunk with roots."""
    thick, bole = draw.vary(0.12, 0.1), draw.vary(0.52, 0.08)
    core, lift = draw.vary(0.36, 0.06), draw.vary(0.30, 0.1)
    around, phase = draw.integer(4, 5), draw.angle()
    balls = [
        (
            phase + k * 2 * math.pi / around,
            draw.vary(0.36, 0.1),
            draw.uniform(-0.08, 0.12),
            draw.vary(0.27, 0.1),
        )
        for k in range(around)
    ]
    top, roots, spread = draw.vary(0.28, 0.08), draw.integer(4, 5), draw.vary(0.20, 0.1)

    def crown(p: Coordinates) -> Distance:
        solid = sphere(p, (0.0, lift, 0.0), core)
        for azimuth, out, up, size in balls:
            centre = (out * math.sin(azimuth), lift + up - 0.04, out * math.cos(azimuth))
            solid = smooth_union(solid, sphere(p, centre, size), 0.05)
        solid = smooth_union(solid, sphere(p, (0.0, lift + 0.30, 0.0), top), 0.05)
        # A wave displaces the surface to form tufts of leaves. The displacement fades out inside the solid.
        tuft = torch.sin(17 * p[0] + phase) * torch.sin(18 * p[1]) * torch.sin(16 * p[2] + 2.0)
        return (solid - 0.035 * tuft * ramp(solid, -0.15, -0.05)) * 0.85

    def trunk(p: Coordinates) -> Distance:
        stem = round_cone(p, (0.0, -bole, 0.0), (0.0, 0.1, 0.0), 1.15 * thick, 0.9 * thick)
        root = round_cone(
            sectors(p, roots, phase), (0.0, 0.12 - bole, 0.4 * thick), (0.0, -bole, spread), 0.08, 0.055
        )
        fork = round_cone(mirror_x(p), (0.0, -0.38 * bole, 0.0), (0.24, 0.08, 0.0), 0.07, 0.06)
        return smooth_union(smooth_union(stem, root, 0.08), fork, 0.06)

    leaf, bark = tint(draw, draw.usually(colour("#4c9a3c"), LEAVES, 0.6)), tint(draw, colour("#7a5032"))

    def foliage(p: Coordinates) -> Tensor:
        """Return the albedo of the leaves, which are brighter at the top of the tree and on the tufts."""
        tuft = torch.sin(17 * p[0] + phase) * torch.sin(18 * p[1]) * torch.sin(16 * p[2] + 2.0)
        bend = 3 * torch.sin(7 * p[1] + 5 * p[0]) + 2 * torch.sin(9 * p[2])
        leaves = torch.sin(47 * p[0] + bend) * torch.sin(43 * p[1] + bend) * torch.sin(51 * p[2] - bend)
        light = ramp(p[1] + 0.35 * tuft + 0.45 * leaves, -0.15, 0.85)
        return mix(shade(leaf, 0.4), shade(leaf, 1.3), light)

    def streaks(p: Coordinates) -> Tensor:
        return mix(shade(bark, 0.65), bark, 0.5 + 0.5 * torch.cos(torch.atan2(p[0], p[2]) * 9))

    parts = (
        Part("crown", crown, foliage, draw.uniform(0.75, 0.9)),
        Part("trunk", trunk, streaks, 0.85),
    )
    return place("tree", parts, draw.angle())
