"""Categories person and head. Both face +z."""

import torch
from torch import Tensor

from dataset.procedural.colour import Colour, colour, mix, over, plain, ramp, shade, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    box2,
    chain,
    ellipsoid,
    mirror_x,
    norm,
    round_cone,
    smooth_intersection,
    smooth_union,
    sphere,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

SKINS = tuple(colour(c) for c in ("#c98a62", "#8d5a3b", "#f2c9a8"))
HAIRS = tuple(colour(c) for c in ("#2a2220", "#d8ab52", "#a2482a", "#8f8b86"))
SHIRTS = tuple(colour(c) for c in ("#2f6db5", "#3f9a57", "#e3a42f", "#e8e2d4", "#7d4ba0"))
TROUSERS = tuple(colour(c) for c in ("#4b4f58", "#6b4a30", "#8a8f96", "#22304e"))


def _lips(flesh: Colour) -> Colour:
    """Return the colour of the lips: the skin colour with less green and blue."""
    return flesh[0] * 0.85, flesh[1] * 0.42, flesh[2] * 0.42


def person(draw: Draw) -> ProceduralObject:
    """Return a person in a shirt, trousers with a belt, and shoes. The arms do not touch the body."""
    skull, chin = draw.vary(0.172, 0.05), 0.60
    shoulder, waist = draw.vary(0.205, 0.06), draw.vary(0.15, 0.08)
    arm, leg = draw.uniform(0.068, 0.078), draw.uniform(0.09, 0.105)
    out, low = draw.uniform(0.45, 0.52), draw.uniform(0.02, 0.12)
    stride, length = draw.uniform(0.155, 0.175), draw.vary(0.66, 0.06)
    long_hair, short_sleeves = draw.chance(0.4), draw.chance(0.45)
    face = chin + 0.78 * skull
    hand = (out, low, 0.04)
    elbow = (0.5 * (shoulder + out) + 0.03, 0.5 * (0.46 + low) - 0.01, -0.02)
    wrist = (0.28 * elbow[0] + 0.72 * out, 0.28 * elbow[1] + 0.72 * low, 0.02)

    def skin(p: Coordinates) -> Distance:
        side = mirror_x(p)
        head = ellipsoid(side, (0.0, face, 0.0), (0.92 * skull, skull, 0.92 * skull))
        ear = sphere(side, (0.92 * skull, face - 0.015, 0.0), 0.038)
        nose = sphere(side, (0.0, face - 0.03, 0.92 * skull), 0.034)
        neck = round_cone(side, (0.0, chin - 0.15, 0.0), (0.0, chin + 0.1, 0.0), 0.075, 0.072)
        head = smooth_union(smooth_union(smooth_union(head, ear, 0.03), nose, 0.03), neck, 0.05)
        fore = chain(side, [elbow, hand], (0.85 * arm, 0.85 * arm))
        return union(head, smooth_union(fore, sphere(side, hand, 1.12 * arm), 0.04))

    def shirt(p: Coordinates) -> Distance:
        side = mirror_x(p)
        chest = round_cone(side, (0.0, 0.36, 0.0), (0.0, 0.05, 0.0), 0.9 * shoulder, waist)
        chest = smooth_union(chest, round_cone(side, (0.0, 0.44, 0.0), (shoulder, 0.44, 0.0), 0.1, 0.1), 0.08)
        flat = smooth_intersection(chest, (p[2].abs() - 0.14), 0.1)
        sleeve = round_cone(side, (shoulder, 0.45, 0.0), elbow, 1.2 * arm, 1.12 * arm)
        if not short_sleeves:
            sleeve = union(sleeve, round_cone(side, elbow, wrist, 1.12 * arm, 1.05 * arm))
        return smooth_union(flat, sleeve, 0.06)

    def trousers(p: Coordinates) -> Distance:
        side = mirror_x(p)
        hips = round_cone(side, (0.0, -0.04, 0.0), (0.08, -0.06, 0.0), waist * 0.95, waist * 0.8)
        limb = round_cone(side, (0.10, -0.08, 0.0), (stride, -length, 0.0), 1.1 * leg, 0.92 * leg)
        return smooth_union(hips, limb, 0.05)

    def shoes(p: Coordinates) -> Distance:
        side = mirror_x(p)
        sole = round_cone(
            side, (stride, -length - 0.08, -0.03), (stride + 0.02, -length - 0.09, 0.13), 0.10, 0.09
        )
        return smooth_intersection(sole, -(p[1] + length + 0.15), 0.03)

    def hair(p: Coordinates) -> Distance:
        cap = ellipsoid(p, (0.0, face + 0.03, -0.03), (skull + 0.02, skull + 0.03, skull + 0.02))
        # A plane that leans forwards cuts off the hair in front of it, so the forehead is visible below the
        # fringe.
        cut = 0.66 * p[2] - 0.75 * (p[1] - face) + 0.02
        tuft = smooth_intersection(cap, cut, 0.05)
        if not long_hair:
            return smooth_intersection(tuft, face - 0.45 * skull - p[1], 0.05)
        mane = round_cone(p, (0.0, face, -0.06), (0.0, chin - 0.14, -0.13), 0.95 * skull, 0.75 * skull)
        return smooth_union(tuft, smooth_intersection(mane, p[2] + 0.04, 0.05), 0.05)

    def eyes(p: Coordinates) -> Distance:
        return sphere(mirror_x(p), (0.38 * skull, face + 0.025, 0.80 * skull), 0.030)

    def mouth(p: Coordinates) -> Distance:
        return ellipsoid(p, (0.0, face - 0.085, 0.80 * skull), (0.052, 0.018, 0.030))

    flesh = tint(draw, draw.usually(colour("#e8b48c"), SKINS, 0.5), 0.06)
    locks = tint(draw, draw.usually(colour("#43281a"), HAIRS, 0.4))
    cloth = tint(draw, draw.usually(colour("#c8342a"), SHIRTS, 0.4))
    striped, stripe = draw.chance(0.35), tint(draw, draw.usually(colour("#ece8dc"), SHIRTS, 0.5))
    denim = tint(draw, draw.usually(colour("#33456b"), TROUSERS, 0.4))

    def shirt_paint(p: Coordinates) -> Tensor:
        """Return the albedo of the shirt: horizontal stripes, or a line of buttons and a collar."""
        if striped:
            return mix(cloth, stripe, ramp(torch.sin(p[1] * 50), 0.0, 0.25))
        front = ramp(p[2], 0.02, 0.03)
        line = over(plain(cloth)(p), shade(cloth, 0.55), front * ramp(p[0].abs(), 0.012, 0.006))
        button = norm(p[0], torch.remainder(p[1], 0.1) - 0.05)
        line = over(line, stripe, front * ramp(button, 0.020, 0.014))
        return over(line, shade(cloth, 0.6), ramp(p[1], chin - 0.09, chin - 0.08))

    def trousers_paint(p: Coordinates) -> Tensor:
        """Return the albedo of the trousers: a dark belt with a buckle, and seams along the sides."""
        belt = over(plain(denim)(p), colour("#2a1d16"), ramp(p[1], 0.0, 0.012))
        belt = over(
            belt,
            colour("#d9b04a"),
            ramp(p[1], 0.0, 0.012) * ramp(p[0].abs(), 0.036, 0.030) * ramp(p[2], 0.0, 0.01),
        )
        return over(belt, shade(denim, 0.6), ramp(p[2].abs(), 0.014, 0.007) * ramp(p[1], 0.0, -0.01))

    parts = (
        Part("skin", skin, plain(flesh), 0.6),
        Part("shirt", shirt, shirt_paint, 0.85),
        Part("trousers", trousers, trousers_paint, 0.85),
        Part("shoes", shoes, plain(tint(draw, colour("#3b2a22"))), 0.6),
        Part("hair", hair, plain(locks), 0.7),
        Part("eyes", eyes, plain(colour("#26211f")), 0.4),
        Part("mouth", mouth, plain(_lips(flesh)), 0.5),
    )
    return place("person", parts)


def head(draw: Draw) -> ProceduralObject:
    """Return a human head with neck, hair, eyebrows, eyes, nose, lips, ears and sometimes a beard."""
    wide, tall, deep = draw.vary(0.46, 0.05), draw.vary(0.56, 0.05), draw.vary(0.50, 0.04)
    jaw, beak = draw.vary(0.26, 0.08), draw.vary(0.075, 0.12)
    neck, fringe = draw.vary(0.235, 0.07), draw.uniform(0.30, 0.40)
    apart, level = draw.uniform(0.40, 0.44) * wide, draw.uniform(0.02, 0.06)
    long_hair, bearded = draw.chance(0.4), draw.chance(0.2)
    puff, phase = draw.uniform(0.05, 0.08), draw.angle()

    def skull(p: Coordinates) -> Distance:
        vault = ellipsoid(p, (0.0, 0.12, -0.04), (wide, 0.85 * tall, deep))
        face = round_cone(p, (0.0, 0.0, 0.12), (0.0, -0.40, 0.20), 0.36, jaw)
        return smooth_union(vault, face, 0.15)

    def skin(p: Coordinates) -> Distance:
        side = mirror_x(p)
        shape = skull(side)
        socket = ellipsoid(side, (apart, level, 0.95 * deep), (0.15, 0.10, 0.12))
        shape = smooth_intersection(shape, -socket, 0.06)
        nose = round_cone(side, (0.0, level, 0.88 * deep), (0.0, -0.15, deep + 0.05), 0.055, beak)
        ear = ellipsoid(side, (0.98 * wide, -0.02, -0.03), (0.075, 0.145, 0.10))
        throat = round_cone(side, (0.0, -0.25, -0.10), (0.0, -0.95, -0.13), neck, neck * 1.15)
        throat = smooth_intersection(throat, -(p[1] + 0.92), 0.04)
        shape = smooth_union(smooth_union(shape, nose, 0.06), ear, 0.04)
        return smooth_union(shape, throat, 0.10)

    def hair(p: Coordinates) -> Distance:
        cap = ellipsoid(p, (0.0, 0.16, -0.07), (wide + puff, 0.85 * tall + puff, deep + puff))
        # A plane that leans forwards cuts off the hair in front of it, so the hair does not cover the
        # forehead and the ears. The edge of the hair is wavy.
        locks = 0.03 * torch.sin(13 * p[0] + phase)
        cut = (p[2] - 0.75 * (p[1] - fringe) - 0.34 + locks) * 0.8
        tuft = smooth_intersection(cap, cut, 0.08)
        nape = -0.36 - p[1]
        if not long_hair:
            return smooth_intersection(tuft, nape, 0.08)
        fall = round_cone(p, (0.0, 0.05, -0.18), (0.0, -0.62, -0.24), wide + 0.06, 0.40)
        fall = smooth_intersection(smooth_intersection(fall, p[2] + 0.06, 0.08), -(p[1] + 0.72), 0.06)
        return smooth_union(tuft, fall, 0.08)

    def eyes(p: Coordinates) -> Distance:
        return ellipsoid(mirror_x(p), (apart, level, 0.80 * deep), (0.105, 0.068, 0.090))

    def brows(p: Coordinates) -> Distance:
        ends = [(0.55 * apart, level + 0.16, 0.88 * deep), (1.40 * apart, level + 0.17, 0.76 * deep)]
        return round_cone(mirror_x(p), *ends, 0.05, 0.042)

    def lips(p: Coordinates) -> Distance:
        # The lips are raised skin within a horizontal bar whose ends bend upwards.
        bend = 1.2 * p[0].abs().clamp(max=0.2).square()
        outline = box2(p[0], p[1] + 0.36 - bend, (0.16, 0.052), 0.045) * 0.9
        return smooth_intersection(skull(p) - 0.045, torch.maximum(outline, 0.1 - p[2]), 0.03)

    def beard(p: Coordinates) -> Distance:
        # The upper edge of the beard rises from the corners of the mouth to the ears.
        edge = (p[1] + 0.27 - 0.7 * (0.38 - p[2]).clamp(0.0, 0.45)) * 0.8
        return smooth_intersection(smooth_intersection(skull(p) - 0.03, edge, 0.05), -(p[2] + 0.08), 0.05)

    flesh = tint(draw, draw.usually(colour("#e8b48c"), SKINS, 0.5), 0.06)
    locks = tint(draw, draw.usually(colour("#43281a"), HAIRS, 0.4))
    iris = tint(draw, draw.usually(colour("#4a2f1e"), (colour("#2f6db5"), colour("#3f7a4a")), 0.5))

    def strands(p: Coordinates) -> Tensor:
        wave = torch.sin(26 * p[0] + 2 * torch.sin(5 * p[1]))
        return mix(shade(locks, 0.75), locks, 0.5 + 0.5 * wave)

    def gaze(p: Coordinates) -> Tensor:
        """Return the albedo of the eyes: white, with iris and pupil facing forwards, and a dark upper lid."""
        off = norm(p[0].abs() - 0.98 * apart, p[1] - level)
        ball = over(plain(colour("#f2f0ea"))(p), iris, ramp(off, 0.054, 0.047))
        ball = over(ball, colour("#141212"), ramp(off, 0.027, 0.021))
        return over(ball, shade(flesh, 0.35), ramp(p[1] - level, 0.040, 0.052))

    def face(p: Coordinates) -> Tensor:
        """Return the albedo of the skin, which is redder on the cheeks and the ears."""
        cheek = norm(p[0].abs() - 0.24, p[1] + 0.16, p[2] - 0.40)
        blush = (flesh[0], flesh[1] * 0.72, flesh[2] * 0.66)
        warm = torch.maximum(0.6 * ramp(cheek, 0.20, 0.05), 0.5 * ramp(p[0].abs(), wide, wide + 0.05))
        return over(plain(flesh)(p), blush, warm)

    parts = (
        Part("skin", skin, face, 0.55),
        Part("hair", hair, strands, 0.7),
        Part("eyes", eyes, gaze, 0.3),
        Part("brows", brows, plain(shade(locks, 0.8)), 0.8),
        Part("lips", lips, plain(_lips(flesh)), 0.45),
    )
    return place("head", (*parts, Part("beard", beard, strands, 0.85)) if bearded else parts)
