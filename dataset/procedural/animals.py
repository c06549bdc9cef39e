"""Categories quadruped, fish and bird. All animals face +z."""

import math

import torch
from torch import Tensor

from dataset.procedural.colour import colour, mix, over, plain, ramp, shade, smooth_ramp, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    chain,
    ellipsoid,
    extrude,
    mirror_x,
    norm,
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
    """Return a dog with a deep chest, slim belly, jointed legs, muzzle, tail, and floppy or erect ears."""
    chest, loin = draw.vary(0.185, 0.07), draw.vary(0.135, 0.07)
    long, leg = draw.vary(0.33, 0.07), draw.vary(0.60, 0.07)
    limb = draw.uniform(0.047, 0.054)
    apart = 0.62 * chest
    skull, rise, reach = draw.vary(0.132, 0.05), draw.uniform(0.30, 0.38), draw.uniform(0.20, 0.26)
    snout = draw.vary(0.235, 0.08)
    floppy = draw.chance(0.65)
    wag, bushy = draw.uniform(0.0, 0.28), draw.uniform(0.042, 0.062)
    crown = (0.0, 0.05 + rise, long + reach)
    ground = 0.06 - leg

    def trunk(p: Coordinates) -> Distance:
        ribs = round_cone(p, (0.0, 0.0, 0.85 * long), (0.0, 0.045, -0.2 * long), chest, 0.95 * loin)
        back = round_cone(p, (0.0, 0.045, -0.2 * long), (0.0, 0.055, -long), 0.95 * loin, loin)
        neck = round_cone(p, (0.0, 0.07, 0.9 * long), crown, 0.76 * chest, 0.80 * skull)
        return smooth_union(smooth_union(ribs, back, 0.08), neck, 0.07)

    def legs(p: Coordinates) -> Distance:
        side = mirror_x(p)
        shoulder, elbow = (0.9 * apart, -0.02, 0.80 * long), (apart, -0.38 * leg, 0.70 * long)
        wrist, toe = (apart, -0.72 * leg, 0.76 * long), (apart, ground, 0.76 * long)
        fore = chain(side, [shoulder, elbow, wrist, toe], (2.0 * limb, 1.35 * limb, limb, 1.0 * limb))
        hip, knee = (0.8 * apart, 0.0, -0.95 * long), (apart, -0.36 * leg, -0.80 * long)
        hock, heel = (apart, -0.60 * leg, -1.26 * long), (apart, ground, -1.16 * long)
        hind = chain(side, [hip, knee, hock, heel], (2.5 * limb, 1.6 * limb, limb, 1.0 * limb))
        return union(fore, hind)

    def paws(p: Coordinates) -> Distance:
        side = mirror_x(p)
        feet = [
            round_cone(
                side, (apart, ground, at), (apart, ground - 0.008, at + 0.075), 1.2 * limb, 1.05 * limb
            )
            for at in (0.76 * long, -1.16 * long)
        ]
        return smooth_intersection(union(*feet), -(p[1] - ground + 0.035), 0.02)

    def tail(p: Coordinates) -> Distance:
        joints = [
            (0.0, 0.09, -long - 0.75 * loin),
            (0.0, 0.10 + 0.5 * wag, -long - loin - 0.14),
            (0.0, 0.10 + 1.4 * wag, -long - loin - 0.26),
        ]
        return chain(p, joints, (0.055, bushy, 0.038))

    def skin(p: Coordinates) -> Distance:
        shape = smooth_union(smooth_union(trunk(p), legs(p), 0.06), tail(p), 0.03)
        brow = ellipsoid(p, crown, (0.95 * skull, skull, 1.1 * skull))
        return smooth_union(smooth_union(shape, brow, 0.04), muzzle(p), 0.04)

    def muzzle(p: Coordinates) -> Distance:
        y, z = crown[1] - 0.035, crown[2]
        return round_cone(p, (0.0, y, z + 0.4 * skull), (0.0, y - 0.025, z + snout), 0.62 * skull, 0.055)

    def nose(p: Coordinates) -> Distance:
        return ellipsoid(p, (0.0, crown[1] - 0.032, crown[2] + snout + 0.05), (0.042, 0.034, 0.03))

    def ears(p: Coordinates) -> Distance:
        x, y, z = mirror_x(p)
        # One axis is scaled, because the ears are flat: their thickness is about half of their width.
        if floppy:
            local = ((x - 0.98 * skull) * 1.8 + 0.98 * skull, y, z)
            top = (0.90 * skull, crown[1] + 0.62 * skull, crown[2] - 0.02)
            bent = (1.04 * skull, crown[1] - 0.45 * skull, crown[2] + 0.02)
            return round_cone(local, top, bent, 0.05, 0.07) * 0.6
        local = (x, y, (z - crown[2]) * 1.5 + crown[2])
        root = (0.62 * skull, crown[1] + 0.6 * skull, crown[2] - 0.01)
        return round_cone(local, root, (0.78 * skull, crown[1] + 1.55 * skull, root[2]), 0.07, 0.03) * 0.7

    def eyes(p: Coordinates) -> Distance:
        return sphere(mirror_x(p), (0.50 * skull, crown[1] + 0.034, crown[2] + 0.84 * skull), 0.027)

    coat = tint(draw, draw.usually(colour("#b8814a"), COATS, 0.35))
    second = tint(draw, draw.usually(colour("#f0e6d2"), (shade(coat, 1.5),), 0.7), 0.05)
    pattern = draw.usually("plain", ("socks", "saddle", "patches"), 0.25)
    saddle = tint(draw, colour("#2e2a29"))
    phase = draw.angle()

    def fur(p: Coordinates) -> Tensor:
        """Return the albedo of fur with a pale throat and belly, and with the markings of `pattern`."""
        strand = torch.sin(60 * p[0] + 23 * p[1] + phase) * torch.sin(55 * p[1] + 31 * p[2])
        own = mix(shade(coat, 0.88), shade(coat, 1.1), 0.5 + 0.5 * strand)
        belly = ramp(p[1] + 0.25 * p[2], -0.03, -0.11) * ramp(p[1], -0.42 * leg, -0.30 * leg)
        own = over(own, second, 0.8 * belly * ramp(p[0].abs(), 0.9 * apart, 0.4 * apart))
        front = ramp(p[2] - crown[2], 0.3 * skull, 0.75 * skull) * ramp(
            p[1], crown[1] - 0.02, crown[1] - 0.045
        )
        own = over(own, second, 0.8 * front)
        if pattern in ("socks", "saddle"):
            own = over(own, second, ramp(p[1], -0.52 * leg, -0.60 * leg))
            tip = ramp(p[2], -long - loin - 0.19, -long - loin - 0.22)
            own = over(own, second, tip * ramp(p[1], -0.02, 0.0))
            blaze = ramp(p[0].abs(), 0.030, 0.020) * ramp(
                p[2], crown[2] + 0.5 * skull, crown[2] + 0.7 * skull
            )
            own = over(own, second, blaze * ramp(p[1], crown[1] - 0.1, crown[1]))
        if pattern == "saddle":
            back = ramp(p[1] + 0.03 * torch.sin(9 * p[2] + phase), -0.03, 0.0) * ramp(
                p[2], 1.05 * long, 0.9 * long
            )
            own = over(own, saddle, back * ramp(p[2], -long - loin - 0.19, -long - loin - 0.16))
        if pattern == "patches":
            wave = torch.sin(7 * p[2] + phase) + torch.sin(8 * p[1] + 6 * p[0] + 2 * phase)
            own = over(own, second, ramp(wave, 0.2, 0.35))
        mouth = (p[1] - crown[1] + 0.075 + 0.1 * (p[2] - crown[2] - snout)).abs()
        return over(
            own, saddle, ramp(mouth, 0.010, 0.005) * ramp(p[2], crown[2] + 0.9 * skull, crown[2] + skull)
        )

    dark = tint(draw, colour("#26211f"))
    ear_colour = saddle if pattern == "saddle" and draw.chance(0.5) else shade(coat, 0.6)

    def toes(p: Coordinates) -> Tensor:
        z = torch.where(p[2] > 0, p[2] - 0.76 * long, p[2] + 1.16 * long)
        gap = torch.minimum((p[0].abs() - apart + 0.018).abs(), (p[0].abs() - apart - 0.018).abs())
        foot = second if pattern in ("socks", "saddle") else shade(coat, 0.95)
        return over(plain(foot)(p), dark, ramp(gap, 0.008, 0.004) * ramp(z, 0.085, 0.095))

    parts = (
        Part("skin", skin, fur, 0.8),
        Part("paws", paws, toes, 0.8),
        Part("ears", ears, plain(ear_colour), 0.8),
        Part("nose", nose, plain(dark), 0.35),
        Part("eyes", eyes, plain(dark), 0.3),
    )
    return place("quadruped", parts)


def fish(draw: Draw) -> ProceduralObject:
    """Return a fish similar to a goldfish: scales, gill covers, fins with rays, a forked tail, round eyes."""
    wide, tall, long = draw.vary(0.185, 0.08), draw.vary(0.28, 0.08), draw.vary(0.56, 0.05)
    fork, spread = draw.uniform(0.10, 0.17), draw.vary(0.34, 0.1)
    crest, keel = draw.vary(0.21, 0.12), draw.vary(0.15, 0.12)
    flap, drop = draw.vary(0.24, 0.1), draw.uniform(0.10, 0.20)
    thin = 0.034
    stalk_end = -long - 0.06
    eye = (0.60 * wide, 0.06, 0.74 * long)

    def body(p: Coordinates) -> Distance:
        # The gradient of the ellipsoid's distance is large deep inside, so the distance is clamped at −0.1.
        trunk = ellipsoid(p, (0.0, 0.0, 0.05), (wide, tall, long)).clamp(min=-0.1)
        stalk = round_cone(p, (0.0, 0.0, -0.15), (0.0, 0.0, stalk_end), 0.13, 0.06)
        snout = sphere(p, (0.0, -0.03, long - 0.02), 0.085)
        return smooth_union(smooth_union(trunk, stalk, 0.12), snout, 0.08) * 0.95

    def upright(p: Coordinates, outline: list[tuple[float, float]]) -> Distance:
        return extrude(polygon(p[2], p[1], outline), p[0], 0.004) - thin

    def tail(p: Coordinates) -> Distance:
        end = stalk_end - 0.32
        upper = [(stalk_end + 0.08, 0.03), (end + 0.06, 0.85 * spread), (end, spread)]
        lobe = [*upper, (end + fork * 0.6, 0.4 * spread), (end + fork + 0.03, 0.0), (stalk_end + 0.08, -0.03)]
        return upright((p[0], p[1].abs(), p[2]), lobe)

    def fins(p: Coordinates) -> Distance:
        back = [
            (0.26, 0.80 * tall),
            (0.16, tall + 0.85 * crest),
            (0.02, tall + crest),
            (-0.36, tall + 0.35 * crest),
            (-0.40, 0.5 * tall),
        ]
        under = [(-0.14, -0.8 * tall), (-0.34, -tall - keel), (-0.42, -0.75 * tall), (-0.38, -0.4 * tall)]
        return union(upright(p, back), upright(p, under))

    def side_fins(p: Coordinates) -> Distance:
        """Return the distance to the pectoral fins behind the gills and the pelvic fins at the belly."""
        x, y, z = mirror_x(p)
        root = (0.88 * wide, -0.09, 0.5 * 0.20)
        # z is halved, because the width of the fins along z is twice their thickness.
        half_z = (x, y, 0.5 * z)
        chest = round_cone(half_z, root, (wide + flap * 0.8, -0.09 - drop, -0.02), 0.035, 0.062)
        belly = round_cone(
            half_z, (0.4 * wide, -0.85 * tall, 0.0), (0.75 * wide, -tall - 0.12, -0.07), 0.035, 0.05
        )
        return union(chest, belly)

    def eyes(p: Coordinates) -> Distance:
        return sphere(mirror_x(p), eye, 0.075)

    base = tint(draw, draw.usually(colour("#ee7a1c"), SCALES, 0.5))
    accent = tint(draw, draw.usually(colour("#f4e3c0"), (colour("#f0cf4a"), colour("#2c3a5a")), 0.6), 0.05)
    fin = tint(draw, draw.usually(shade(base, 1.15), SCALES, 0.7))
    pattern = draw.usually("plain", ("striped", "patched"), 0.5)
    count, phase = draw.uniform(2.4, 3.0), draw.angle()
    size = draw.uniform(0.062, 0.072)
    gill = 0.46 * long

    def scales(p: Coordinates) -> Tensor:
        """Return the albedo: a pale belly, rows of scales behind the gills, a dark gill line and mouth."""
        own = mix(accent, base, smooth_ramp(p[1], -0.75 * tall, -0.15 * tall))
        own = over(own, shade(base, 0.6), smooth_ramp(p[1], 0.45 * tall, 0.95 * tall))
        if pattern == "striped":
            band = torch.cos((p[2] - 0.10) / long * count * math.pi)
            own = over(own, accent, ramp(band, 0.5, 0.65) * ramp(p[2], 0.62 * long, 0.55 * long))
        elif pattern == "patched":
            wave = torch.sin(6 * p[2] + phase) + torch.sin(7 * p[1] + 2 * phase)
            own = over(own, accent, ramp(wave, 0.3, 0.45))
        # Scales are discs. Their centres are staggered like bricks, and each scale overlaps the scale behind
        # it.
        row = torch.floor(p[2] / size)
        along = p[2] / size - row
        height = torch.remainder(p[1] / (1.5 * size) + 0.5 * torch.remainder(row, 2.0), 1.0) - 0.5
        rim = (along - 1.0 + 3.0 * height.square()).abs()
        rim = torch.minimum(rim, (along + 3.0 * (0.5 - height.abs()).square()).abs())
        covered = ramp(p[2], gill - 0.03, gill - 0.06) * ramp(p[2], stalk_end + 0.02, stalk_end + 0.10)
        own = own * (1 - 0.45 * ramp(rim, 0.28, 0.08) * covered)[:, None]
        cover = (norm(p[1] + 0.02, p[2] - gill - 0.16) - 0.19).abs()
        own = over(own, shade(base, 0.35), ramp(cover, 0.018, 0.009) * ramp(p[2], gill + 0.06, gill + 0.03))
        mouth = (p[1] + 0.05).abs()
        return over(own, shade(base, 0.25), ramp(mouth, 0.016, 0.008) * ramp(p[2], long - 0.02, long))

    def rays(p: Coordinates) -> Tensor:
        """Return the albedo of the fins: light and dark rays that fan out from the body."""
        angle = torch.atan2(p[1], p[2] + 0.30 * long)
        behind = torch.atan2(p[1], stalk_end + 0.25 - p[2])
        turn = torch.where(p[2] < stalk_end + 0.05, behind, angle)
        ray = 0.5 + 0.5 * torch.cos(turn * 44)
        return mix(shade(fin, 0.6), fin, ray)

    def eye_paint(p: Coordinates) -> Tensor:
        """Return the albedo of the eyes: a black pupil in a pale ring.

        The pupils point outwards and slightly forwards.
        """
        x, y, z = (p[0].abs() - eye[0]) / 0.075, (p[1] - eye[1]) / 0.075, (p[2] - eye[2]) / 0.075
        facing = (0.88 * x + 0.1 * y + 0.46 * z) / norm(x, y, z).clamp(min=1e-6)
        return mix(colour("#f3dfa0"), colour("#181616"), ramp(facing, 0.68, 0.76))

    gloss = draw.uniform(0.35, 0.5)
    parts = (
        Part("body", body, scales, gloss),
        Part("tail", tail, rays, gloss),
        Part("fins", fins, rays, gloss),
        Part("side fins", side_fins, rays, gloss),
        Part("eyes", eyes, eye_paint, 0.3),
    )
    return place("fish", parts)


def bird(draw: Draw) -> ProceduralObject:
    """Return a plump bird on two feet: a round head with a beak, folded wings, a tail and a light breast."""
    plump, long = draw.vary(0.29, 0.06), draw.vary(0.30, 0.1)
    skull, rise = draw.vary(0.195, 0.06), draw.uniform(0.34, 0.40)
    bill, gape = draw.vary(0.19, 0.12), draw.uniform(0.058, 0.072)
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
        # x is scaled, because the wings are thin along x. They cover the sides of the body and taper
        # backwards.
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

    def eyes(p: Coordinates) -> Distance:
        return sphere(mirror_x(p), (0.72 * skull, rise + 0.05, face[2] + 0.52 * skull), 0.046)

    coat = tint(draw, draw.usually(colour("#3578c8"), PLUMAGE, 0.45))
    breast = tint(draw, draw.usually(colour("#f2e8d4"), (colour("#e89a4a"),), 0.7), 0.05)
    horn = tint(draw, draw.usually(colour("#f0a01e"), (colour("#e8c83a"),), 0.7))

    def feathers(p: Coordinates) -> Tensor:
        """Return the albedo of the body: mottled feathers, a light breast, a dark line through the eyes."""
        row = torch.sin(52 * p[1] + 20 * p[2]) * torch.sin(46 * p[0] + 17 * p[2])
        own = mix(shade(coat, 0.82), shade(coat, 1.12), 0.5 + 0.5 * row)
        front = ramp(0.9 * p[2] - p[1], 0.10, 0.20) * ramp(p[1], 0.24, 0.16)
        own = over(own, breast, front)
        line = ramp((p[1] - rise - 0.045).abs(), 0.05, 0.03) * ramp(p[2], face[2], face[2] + 0.05)
        return over(own, shade(coat, 0.3), line * ramp(p[0].abs(), 0.2 * skull, 0.4 * skull))

    def plumes(p: Coordinates) -> Tensor:
        """Return the albedo of wings and tail: rows of dark-edged feathers, a pale bar across the wings."""
        vane = torch.remainder((p[1] + 0.25 * p[2]) / 0.055, 1.0)
        own = mix(shade(coat, 0.30), shade(coat, 0.55), ramp(vane, 0.0, 0.5))
        bar = ramp((p[2] + 0.05 + 0.3 * p[1]).abs(), 0.035, 0.025)
        return over(own, breast, bar * ramp(p[0].abs(), 0.5 * plump, 0.6 * plump))

    parts = [
        Part("body", body, feathers, 0.8),
        Part("tail", tail, plumes, 0.8),
        Part("wings", wings, plumes, 0.8),
        Part("legs", legs, plain(shade(horn, 0.9)), 0.6),
        Part("beak", beak, plain(horn), 0.5),
        Part("eyes", eyes, plain(colour("#22201f")), 0.3),
    ]
    if crested:
        parts.append(Part("crest", crest, plain(shade(coat, 0.38)), 0.8))
    return place("bird", tuple(parts))
