"""Quadruped, fish and bird. All look to +z."""

import math

import torch
from torch import Tensor

from dataset.procedural.colour import colour, mix, plain, ramp, shade, smooth_ramp, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    chain,
    ellipsoid,
    extrude,
    mirror_x,
    polygon,
    round_cone,
    smooth_intersection,
    smooth_union,
    sphere,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

COATS = tuple(colour(c) for c in ("#6b4a30", "#d9b98a", "#4b4b50", "#e4dfd4", "#b0622c"))
SCALES = tuple(colour(c) for c in ("#2f7fc4", "#e3b62f", "#d8402a", "#3f9a8a"))
PLUMAGE = tuple(colour(c) for c in ("#c8342a", "#e8b52c", "#3f9a57", "#7d5a3c"))


def quadruped(draw: Draw) -> ProceduralObject:
    """A dog-like animal on four stout legs: neck, head with muzzle and ears, tail; now and then spotted."""
    girth, long = draw.vary(0.215, 0.07), draw.vary(0.36, 0.08)
    leg, height = draw.uniform(0.082, 0.095), draw.vary(0.50, 0.12)
    apart = 0.72 * girth
    skull, rise, reach = draw.vary(0.21, 0.06), draw.uniform(0.24, 0.36), draw.uniform(0.20, 0.27)
    snout, floppy = draw.uniform(0.20, 0.27), draw.chance(0.5)
    wag = draw.uniform(0.0, 0.30)
    crown = (0.0, rise, long + reach)

    def trunk(p: Coordinates) -> Distance:
        body = round_cone(p, (0.0, 0.0, 0.9 * long), (0.0, 0.02, -long), 1.02 * girth, 0.9 * girth)
        neck = round_cone(p, (0.0, 0.05, 0.85 * long), crown, 0.85 * girth, 0.78 * skull)
        return smooth_union(body, neck, 0.08)

    def legs(p: Coordinates) -> Distance:
        x, y, z = mirror_x(p)
        front = chain(
            (x, y, z), [(apart, -0.05, 0.85 * long), (apart, -height, 0.85 * long)], (1.25 * leg, leg)
        )
        hock = [(apart, -0.04, -0.92 * long), (apart, -0.55 * height, -1.0 * long), (apart, -height, -long)]
        return union(front, chain((x, y, z), hock, (1.45 * leg, 1.05 * leg, leg)))

    def paws(p: Coordinates) -> Distance:
        x, y, z = mirror_x(p)
        feet = [
            round_cone((x, y, z), (apart, -height, at), (apart, -height - 0.01, at + 0.07), 1.12 * leg, leg)
            for at in (0.85 * long, -long)
        ]
        return smooth_intersection(union(*feet), -(p[1] + height + 0.06), 0.03)

    def tail(p: Coordinates) -> Distance:
        joints = [
            (0.0, 0.10, -long - 0.5 * girth),
            (0.0, 0.17 + 0.4 * wag, -long - girth - 0.06),
            (0.0, 0.24 + wag, -long - girth - 0.12),
        ]
        return chain(p, joints, (0.075, 0.065, 0.055))

    def skin(p: Coordinates) -> Distance:
        shape = smooth_union(trunk(p), legs(p), 0.07)
        brow = ellipsoid(p, crown, (0.95 * skull, skull, 1.05 * skull))
        return smooth_union(smooth_union(shape, brow, 0.06), tail(p), 0.05)

    def muzzle(p: Coordinates) -> Distance:
        y, z = crown[1] - 0.06, crown[2]
        return round_cone(p, (0.0, y, z + 0.5 * skull), (0.0, y - 0.03, z + snout + 0.05), 0.62 * skull, 0.10)

    def nose(p: Coordinates) -> Distance:
        return ellipsoid(p, (0.0, crown[1] - 0.035, crown[2] + snout + 0.13), (0.065, 0.055, 0.055))

    def ears(p: Coordinates) -> Distance:
        x, y, z = mirror_x(p)
        root = (0.55 * skull, crown[1] + 0.68 * skull, crown[2] - 0.03)
        if floppy:
            bent = (1.12 * skull, crown[1] - 0.12, crown[2] + 0.0)
            return chain(
                (x, y, z), [root, (1.02 * skull, crown[1] + 0.5 * skull, root[2]), bent], (0.06, 0.062, 0.07)
            )
        return round_cone((x, y, z), root, (0.80 * skull, crown[1] + 1.45 * skull, root[2]), 0.09, 0.048)

    def eyes(p: Coordinates) -> Distance:
        return sphere(mirror_x(p), (0.52 * skull, crown[1] + 0.06, crown[2] + 0.86 * skull), 0.046)

    coat = tint(draw, draw.usually(colour("#a06a3c"), COATS, 0.45))
    second = tint(draw, draw.usually(colour("#f0e6d2"), (shade(coat, 0.45),), 0.7), 0.05)
    patched, phase = draw.chance(0.35), draw.angle()

    def fur(p: Coordinates) -> Tensor:
        """Lighter below; patches where it is spotted."""
        belly = ramp(p[1], -0.06, -0.20) * ramp(p[0].abs(), 0.15, 0.08) * ramp(p[2].abs(), long, 0.8 * long)
        wave = torch.sin(6 * p[2] + phase) + torch.sin(7 * p[1] + 5 * p[0] + 2 * phase)
        patch = ramp(wave, 0.85, 1.0) * ramp(p[1], -0.3, -0.2) if patched else torch.zeros_like(belly)
        return mix(coat, second, torch.maximum(belly, patch))

    dark = tint(draw, colour("#2c2624"))
    parts = (
        Part("skin", skin, fur, 0.8),
        Part("muzzle", muzzle, plain(second), 0.8),
        Part("paws", paws, plain(draw.usually(second, (shade(coat, 0.5),), 0.5)), 0.8),
        Part("ears", ears, plain(shade(coat, 0.55)), 0.8),
        Part("nose", nose, plain(dark), 0.4),
        Part("eyes", eyes, plain(dark), 0.35),
    )
    return place("quadruped", parts)


def fish(draw: Draw) -> ProceduralObject:
    """A plump fish: upright forked tail, fins all round, big eyes, lips; often striped."""
    wide, tall, long = draw.vary(0.22, 0.08), draw.vary(0.36, 0.08), draw.vary(0.56, 0.05)
    fork, spread = draw.uniform(0.04, 0.12), draw.vary(0.36, 0.08)
    crest, keel = draw.vary(0.26, 0.1), draw.vary(0.16, 0.1)
    sweep, flap = draw.uniform(0.10, 0.20), draw.vary(0.26, 0.1)
    thin = 0.055

    def body(p: Coordinates) -> Distance:
        # Deep inside, where the ellipsoid's distance is steep, a lower bound will do.
        trunk = ellipsoid(p, (0.0, 0.0, 0.05), (wide, tall, long)).clamp(min=-0.1)
        # The root of the tail.
        stalk = round_cone(p, (0.0, 0.0, -0.2), (0.0, 0.0, -long - 0.06), 0.16, 0.075)
        return smooth_union(trunk, stalk, 0.12) * 0.95

    def lips(p: Coordinates) -> Distance:
        return ellipsoid(p, (0.0, -0.03, long + 0.03), (0.085, 0.075, 0.06))

    def upright(p: Coordinates, outline: list[tuple[float, float]]) -> Distance:
        return extrude(polygon(p[2], p[1], outline), p[0], 0.005) - thin

    def tail(p: Coordinates) -> Distance:
        end = -long - 0.36
        outline = [(-long + 0.06, 0.0), (end, spread), (end + fork, 0.0), (end, -spread)]
        return upright(p, outline)

    def fins(p: Coordinates) -> Distance:
        back = [
            (0.22, 0.85 * tall),
            (0.02, tall + crest),
            (-0.30, tall + 0.45 * crest),
            (-0.36, 0.6 * tall),
        ]
        under = [(-0.02, -0.9 * tall), (-0.24, -tall - keel), (-0.32, -0.6 * tall)]
        return union(upright(p, back), upright(p, under))

    def side_fins(p: Coordinates) -> Distance:
        root, end = (0.9 * wide, -0.10), (wide + flap, -0.22)
        x, y, z = mirror_x(p)
        # Drawn out along z: broad paddles.
        return round_cone((x, y, 0.5 * z), (*root, 0.08), (*end, 0.06 - 0.5 * sweep), 0.055, 0.075)

    def whites(p: Coordinates) -> Distance:
        return sphere(mirror_x(p), (0.68 * wide, 0.10, 0.62 * long), 0.10)

    def pupils(p: Coordinates) -> Distance:
        return sphere(mirror_x(p), (0.68 * wide + 0.065, 0.105, 0.62 * long + 0.025), 0.062)

    base = tint(draw, draw.usually(colour("#ee7a1c"), SCALES, 0.5))
    accent = tint(draw, draw.usually(colour("#f2ede2"), (colour("#f0cf4a"), colour("#2c3a5a")), 0.6), 0.05)
    fin = tint(draw, draw.usually(shade(base, 0.7), SCALES, 0.6))
    striped, count = draw.chance(0.6), draw.uniform(2.6, 3.2)

    def scales(p: Coordinates) -> Tensor:
        """Upright bands, or a belly lighter than the back."""
        if striped:
            band = torch.cos((p[2] - 0.10) / long * count * math.pi)
            return mix(base, accent, ramp(band, 0.55, 0.75) * ramp(p[2], 0.95 * long, 0.85 * long))
        return mix(accent, base, smooth_ramp(p[1], -0.6 * tall, 0.1 * tall))

    gloss = draw.uniform(0.35, 0.5)
    parts = (
        Part("body", body, scales, gloss),
        Part("tail", tail, plain(fin), gloss),
        Part("fins", fins, plain(fin), gloss),
        Part("side fins", side_fins, plain(fin), gloss),
        Part("lips", lips, plain(shade(base, 0.55)), gloss),
        Part("whites", whites, plain(colour("#f2f0ea")), 0.35),
        Part("pupils", pupils, plain(colour("#22201f")), 0.3),
    )
    return place("fish", parts)


def bird(draw: Draw) -> ProceduralObject:
    """A plump bird on two feet: round head with a beak, folded wings, a tail behind, a light breast."""
    plump, long = draw.vary(0.33, 0.06), draw.vary(0.24, 0.1)
    skull, rise = draw.vary(0.235, 0.06), draw.uniform(0.38, 0.44)
    bill, gape = draw.vary(0.22, 0.12), draw.uniform(0.085, 0.10)
    droop, train = draw.uniform(-0.10, 0.06), draw.vary(0.36, 0.1)
    stand, apart = draw.vary(0.22, 0.1), draw.uniform(0.13, 0.16)
    crested = draw.chance(0.3)
    face = (0.0, rise, 0.22)

    def body(p: Coordinates) -> Distance:
        egg = round_cone(p, (0.0, 0.0, 0.08), (0.0, 0.02, -long), plump, 0.72 * plump)
        return smooth_union(egg, sphere(p, face, skull), 0.12)

    def tail(p: Coordinates) -> Distance:
        x, y, z = p
        flat = (x / 2.0, y, z)
        return round_cone(
            flat, (0.0, 0.02, -long - 0.1), (0.0, 0.02 + droop, -long - 0.2 - train), 0.06, 0.06
        )

    def wings(p: Coordinates) -> Distance:
        x, y, z = mirror_x(p)
        # Flat along x: broad shields on the flanks that taper backwards.
        local = ((x - 0.90 * plump + 0.12 * (z + 0.1).abs()) * 2.2, y, z)
        return round_cone(local, (0.0, 0.06, 0.02), (0.0, -0.02, -long - 0.26), 0.21, 0.11) * 0.5

    def legs(p: Coordinates) -> Distance:
        x, y, z = mirror_x(p)
        ground = -plump - stand
        shank = round_cone((x, y, z), (apart, -0.7 * plump, 0.0), (apart, ground, 0.03), 0.07, 0.062)
        toes = [
            round_cone((x, y, z), (apart, ground, 0.02), (apart + turn, ground - 0.01, 0.20), 0.056, 0.05)
            for turn in (-0.07, 0.07)
        ]
        heel = round_cone((x, y, z), (apart, ground, 0.02), (apart, ground - 0.01, -0.10), 0.056, 0.05)
        return union(shank, *toes, heel)

    def beak(p: Coordinates) -> Distance:
        start = (0.0, face[1] - 0.01, face[2] + 0.75 * skull)
        return round_cone(p, start, (0.0, face[1] - 0.05, face[2] + skull + bill - 0.04), gape + 0.01, 0.038)

    def crest(p: Coordinates) -> Distance:
        return round_cone(p, (0.0, rise + 0.8 * skull, 0.20), (0.0, rise + skull + 0.16, 0.06), 0.085, 0.045)

    def whites(p: Coordinates) -> Distance:
        return sphere(mirror_x(p), (0.60 * skull, rise + 0.06, face[2] + 0.62 * skull), 0.075)

    def pupils(p: Coordinates) -> Distance:
        return sphere(mirror_x(p), (0.72 * skull, rise + 0.065, face[2] + 0.74 * skull), 0.05)

    coat = tint(draw, draw.usually(colour("#3578c8"), PLUMAGE, 0.45))
    breast = tint(draw, draw.usually(colour("#f2e8d4"), (colour("#e89a4a"),), 0.7), 0.05)
    horn = tint(draw, draw.usually(colour("#f0a01e"), (colour("#e8c83a"),), 0.7))

    def feathers(p: Coordinates) -> Tensor:
        """The breast is light: low and to the front."""
        front = ramp(0.9 * p[2] - p[1], 0.10, 0.20) * ramp(p[1], 0.24, 0.16)
        return mix(coat, breast, front)

    parts = [
        Part("body", body, feathers, 0.8),
        Part("tail", tail, plain(shade(coat, 0.38)), 0.8),
        Part("wings", wings, plain(shade(coat, 0.38)), 0.8),
        Part("legs", legs, plain(shade(horn, 0.9)), 0.6),
        Part("beak", beak, plain(horn), 0.5),
        Part("whites", whites, plain(colour("#f2f0ea")), 0.4),
        Part("pupils", pupils, plain(colour("#22201f")), 0.3),
    ]
    if crested:
        parts.append(Part("crest", crest, plain(shade(coat, 0.38)), 0.8))
    return place("bird", tuple(parts))
