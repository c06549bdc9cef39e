"""Categories pineapple, strawberry, apple and banana.

Each fruit has a random azimuth about +y except the banana, whose stalk is at +x.
"""

import math

import torch
from torch import Tensor

from dataset.procedural.colour import bell, colour, mix, over, plain, ramp, shade, smooth_ramp, spots, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    blade,
    chain,
    ellipsoid,
    norm,
    round_cone,
    sectors,
    shift,
    smooth_union,
    turn_x,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place


def pineapple(draw: Draw) -> ProceduralObject:
    """Return a pineapple: an ovoid with diamond-shaped scales, a bract on each, and three rings of leaves."""
    radius, half_height = draw.vary(0.35, 0.07), draw.vary(0.46, 0.07)
    around, pitch = draw.integer(8, 9), draw.vary(4.1, 0.05)
    relief, squareness = draw.uniform(0.036, 0.044), draw.uniform(0.05, 0.09)

    def scales(p: Coordinates) -> Tensor:
        """Return the height of the diamond pattern in [0, 1], computed from two opposite spiral waves."""
        azimuth = torch.atan2(p[0], p[2]) * (around / 2)
        climb = p[1] * (math.pi * pitch)
        ridge = ((azimuth + climb).cos() * (azimuth - climb).cos()).abs()
        return ridge * (1.5 - 0.5 * ridge)

    def body(p: Coordinates) -> Distance:
        ovoid = ellipsoid(p, (0.0, 0.0, 0.0), (radius, half_height, radius)) - squareness * 0.5
        # The relief fades out towards the axis, because all spirals meet there.
        fade = ramp(norm(p[0], p[2]), 0.04, 0.33)
        return (ovoid - relief * (scales(p) - 0.6) * fade) * 0.75

    base = half_height + squareness * 0.5 - 0.06
    crown_height, spread = draw.vary(0.48, 0.1), draw.vary(0.30, 0.1)
    counts = (draw.integer(6, 7), 6, 4)
    phases = (draw.angle(), draw.angle(), draw.angle())

    def crown(p: Coordinates) -> Distance:
        local = shift(p, (0.0, base, 0.0))
        rings = []
        for ring, (count, phase) in enumerate(zip(counts, phases, strict=True)):
            out = spread * (1.0, 0.70, 0.30)[ring]
            up = crown_height * (0.44, 0.74, 0.98)[ring]
            joints = [(0.05, 0.0), (0.06 + 0.5 * out, 0.55 * up), (0.05 + out, (0.94, 1.0, 1.0)[ring] * up)]
            rings.append(blade(sectors(local, count, phase), joints, (0.065, 0.060, 0.026), 1.7))
        heart = round_cone(local, (0.0, 0.0, 0.0), (0.0, 0.95 * crown_height, 0.0), 0.14, 0.03)
        # Fillets and a thick core fill the cavities between the leaves and above the scales.
        core = ellipsoid(local, (0.0, 0.02, 0.0), (0.21, 0.26, 0.21))
        core = smooth_union(smooth_union(core, heart, 0.05), rings[0], 0.05)
        return smooth_union(core, smooth_union(rings[1], rings[2], 0.05), 0.05)

    flesh = tint(draw, draw.usually(colour("#e0a021"), (colour("#c98a1c"), colour("#b59a2c")), 0.6))
    groove, bract = shade(tint(draw, colour("#7d4a12")), 0.8), tint(draw, colour("#8a5a1c"))
    leaf = tint(draw, draw.usually(colour("#4f9a3a"), (colour("#6a9a4a"), colour("#3f7f4a")), 0.6))

    def skin(p: Coordinates) -> Tensor:
        """Return the albedo of the body: dark grooves, and bright scales with brown bracts at their centres.

        The scales below the crown are greener.
        """
        height = scales(p)
        face = mix(flesh, shade(flesh, 1.25), ramp(height, 0.5, 0.9))
        face = over(face, shade(leaf, 1.2), 0.45 * ramp(p[1], 0.1 * half_height, half_height))
        face = over(face, groove, ramp(height, 0.42, 0.16))
        return over(face, bract, ramp(height, 0.93, 0.98) * ramp(norm(p[0], p[2]), 0.1, 0.2))

    def foliage(p: Coordinates) -> Tensor:
        """Return the albedo of the leaves, which are dark near the axis and have a pale middle vein."""
        radial = norm(p[0], p[2])
        tone = ramp(p[1], base - 0.02, base + 0.6 * crown_height) * 0.6 + 0.4 * ramp(radial, 0.08, 0.26)
        blades = mix(shade(leaf, 0.45), shade(leaf, 1.1), tone)
        vein = torch.cos((torch.atan2(p[0], p[2]) - phases[0]) * (3 * counts[0]))
        return over(blades, shade(leaf, 1.5), 0.35 * ramp(vein, 0.5, 1.0) * ramp(radial, 0.1, 0.2))

    parts = (
        Part("body", body, skin, roughness=draw.uniform(0.5, 0.65)),
        Part("crown", crown, foliage, roughness=draw.uniform(0.5, 0.7)),
    )
    return place("pineapple", parts, draw.angle())


def strawberry(draw: Draw) -> ProceduralObject:
    """Return a strawberry: a plump cone that points down, sunken seeds, leaves and a stalk on top."""
    top, tip = draw.vary(0.45, 0.06), draw.vary(0.17, 0.1)
    length = draw.vary(0.60, 0.08)
    spacing, phase = draw.uniform(0.40, 0.46), draw.angle()

    def seed_offsets(p: Coordinates) -> tuple[Tensor, Tensor]:
        """Return the offsets from the nearest seed, in radians along the meridian and along the parallel."""
        y = (p[1] + 0.4 * length) / 1.25
        return spots(torch.atan2(p[0], p[2]), torch.atan2(norm(p[0], p[2]), -y), spacing, phase)

    def body(p: Coordinates) -> Distance:
        cone = round_cone(p, (0.0, 0.0, 0.0), (0.0, -length, 0.0), top, tip)
        belly = ellipsoid(p, (0.0, -0.25 * length, 0.0), (top * 0.98, 0.85 * length, top * 0.98))
        flesh = smooth_union(cone, belly, 0.12)
        along, across = seed_offsets(p)
        fade = ramp(norm(p[0], p[1] + 0.4 * length, p[2]), 0.1, 0.3)
        dimple = bell(norm(along, across), 0.17) * fade
        return (flesh + 0.03 * dimple) * 0.85

    leaves, turn = draw.integer(6, 8), draw.angle()
    reach, lift = draw.vary(0.41, 0.08), draw.uniform(0.0, 0.06)

    def cap(p: Coordinates) -> Distance:
        joints = [(0.02, top - 0.01), (0.6 * reach, top - 0.06), (reach, 0.68 * top + lift)]
        leaf = blade(sectors(p, leaves, turn), joints, (0.06, 0.062, 0.02), 2.0)
        return union(leaf, round_cone(p, (0.0, top - 0.05, 0.0), (0.05, top + 0.15, 0.0), 0.07, 0.06))

    red = tint(draw, colour("#d8201c"))
    seed, leaf_colour = tint(draw, colour("#f0cf6a")), tint(draw, colour("#4c9e35"))

    def skin(p: Coordinates) -> Tensor:
        along, across = seed_offsets(p)
        return mix(seed, red, ramp(norm(along * 0.7, across * 1.15), 0.05, 0.075))

    parts = (
        Part("body", body, skin, roughness=draw.uniform(0.3, 0.45)),
        Part("cap", cap, plain(leaf_colour), roughness=draw.uniform(0.5, 0.7)),
    )
    return place("strawberry", parts, draw.angle())


def apple(draw: Draw) -> ProceduralObject:
    """Return an apple: a ball that narrows downwards, with a pit at each pole, a stalk and usually a leaf."""
    offset, tube = draw.vary(0.20, 0.08), draw.vary(0.37, 0.04)
    tall, taper = draw.uniform(1.20, 1.32), draw.uniform(0.14, 0.22)

    def body(p: Coordinates) -> Distance:
        # The shape is a torus with a tube radius greater than its ring radius, so it has a pit at each pole.
        radius = norm(p[0], p[2]) * (1 + taper * smooth_ramp(p[1], 0.25, -0.55))
        return (norm(radius - offset, p[1] / tall) - tube) * 0.9

    tilt, leafed = draw.uniform(0.03, 0.12), draw.chance(0.85)
    pit = tall * math.sqrt(tube**2 - offset**2)

    def stalk(p: Coordinates) -> Distance:
        return round_cone(p, (0.0, pit - 0.12, 0.0), (tilt, pit + 0.20, 0.0), 0.048, 0.055)

    def leaf(p: Coordinates) -> Distance:
        lifted = turn_x(shift(p, (0.6 * tilt, pit + 0.165, 0.0)), -0.35)
        joints = [(-0.02, 0.0), (0.09, 0.01), (0.20, 0.01), (0.33, -0.02)]
        return blade(lifted, joints, (0.032, 0.052, 0.050, 0.022), 2.0)

    fresh = draw.usually(colour("#c9221d"), (colour("#7fb23a"), colour("#dcb834"), colour("#a8202a")), 0.6)
    skin, blush = tint(draw, fresh), tint(draw, draw.usually(colour("#e2b23c"), (fresh,), 0.6))

    def flesh(p: Coordinates) -> Tensor:
        """Return the albedo: vertical streaks, pale spots, and a second colour around both pits."""
        turn = torch.atan2(p[0], p[2])
        streak = torch.sin(19 * turn + 2 * torch.sin(7 * turn)) * torch.sin(31 * turn + 1.0)
        peel = mix(skin, blush, 0.75 * ramp(norm(p[0], p[2]), 0.32, 0.05))
        peel = over(peel, blush, 0.15 * ramp(streak, -0.2, 0.9) * ramp(norm(p[0], p[2]), 0.05, 0.25))
        off = norm(*spots(turn, torch.atan2(norm(p[0], p[2]), p[1]), 0.30, 0.0, 0.2))
        return over(peel, colour("#f0dfae"), 0.35 * ramp(off, 0.024, 0.012))

    parts = (
        Part("body", body, flesh, roughness=draw.uniform(0.3, 0.4)),
        Part("stalk", stalk, plain(tint(draw, colour("#6d4a2a"))), 0.8),
        Part("leaf", leaf, plain(tint(draw, colour("#4c9e35"))), 0.6),
    )
    return place("apple", parts if leafed else parts[:2], draw.angle())


def banana(draw: Draw) -> ProceduralObject:
    """Return a banana: an arc in the plane z = 0 with rounded edges along its length.

    The middle of the banana is its lowest point, the stalk is at +x, and the dark tip is at −x.
    """
    bend, half_angle = draw.vary(0.62, 0.08), draw.uniform(0.98, 1.15)
    thick, ends = draw.vary(0.18, 0.08), draw.uniform(0.45, 0.52)
    edges, phase = draw.uniform(0.010, 0.016), draw.angle()

    def body(p: Coordinates) -> Distance:
        """Return the distance to the union of spheres along an arc with centre (0, bend).

        The radius of the spheres decreases towards the ends of the arc.
        """
        radius, angle = norm(p[0], p[1] - bend), torch.atan2(p[0], bend - p[1])
        nearest = angle.clamp(-half_angle, half_angle)
        fraction = (nearest / half_angle).abs()
        # At the centre of the arc the nearest sphere is not unique, because all points of the arc are equally
        # far away. Blending the radii to one value near the centre keeps the distance continuous.
        apart = ramp(radius, 0.0, 0.6 * bend)
        size = thick * (1 - ends * (0.35 + (fraction**2.6 - 0.35) * apart))
        across, off = norm(p[0] - bend * nearest.sin(), p[1] - bend + bend * nearest.cos()), p[2]
        around = torch.atan2(off, radius - bend)
        fade = ramp(norm(across, off), 0.03, 0.14) * (1 - fraction**2) * apart
        return (norm(across, off) - size - edges * torch.cos(5 * around + phase) * fade) * 0.88

    sin, cos = math.sin(half_angle), math.cos(half_angle)

    def beyond(distance: float, rise: float = 0.0) -> tuple[float, float, float]:
        """Return the point `distance` beyond the arc's end at +x along the tangent, raised by `rise`."""
        return bend * sin + cos * distance, bend * (1 - cos) + sin * distance + rise, 0.0

    length = draw.uniform(0.20, 0.28)

    def stalk(p: Coordinates) -> Distance:
        joints = [beyond(-0.06), beyond(0.6 * length), beyond(length, 0.03)]
        return chain(p, joints, (thick * (1 - ends) * 0.97, 0.062, 0.066))

    def tip(p: Coordinates) -> Distance:
        x, y, _ = beyond(0.06)
        return round_cone(p, (-0.96 * bend * sin, 0.98 * bend * (1 - cos), 0.0), (-x, y, 0.0), 0.085, 0.055)

    ripe = tint(draw, draw.usually(colour("#f2c81e"), (colour("#b9c234"), colour("#e6b422")), 0.7), 0.08)
    green, brown = tint(draw, colour("#93a83a")), tint(draw, colour("#5a3d20"))
    freckled = draw.chance(0.3)

    def skin(p: Coordinates) -> Tensor:
        peel = mix(ripe, green, 0.8 * ramp(p[0], 0.70 * bend * sin, 1.05 * bend * sin))
        if not freckled:
            return peel
        noise = (23 * p[0] + 3 * p[2]).sin() * (19 * p[1] + 5 * p[0]).sin() * (27 * p[2] + 2 * p[1]).sin()
        spot = ramp(noise, 0.45, 0.6)[:, None]
        return peel + spot * (mix(brown, brown, p[0]) - peel)

    def stem(p: Coordinates) -> Tensor:
        cut = bend * (1 - cos) + sin * length
        return mix(green, brown, ramp(p[1], cut - 0.02, cut + 0.04))

    gloss = draw.uniform(0.4, 0.55)
    parts = (
        Part("body", body, skin, gloss),
        Part("stalk", stalk, stem, gloss),
        Part("tip", tip, plain(shade(brown, 0.6)), 0.8),
    )
    return place("banana", parts)
