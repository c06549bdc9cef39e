"""Car, which drives towards +z, and rocket, its porthole at +z."""

import math

from torch import Tensor

from dataset.procedural.colour import colour, mix, plain, ramp, shade, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    box,
    box2,
    ellipsoid,
    extrude,
    mirror_x,
    norm,
    polygon,
    round_cone,
    sectors,
    smooth_intersection,
    smooth_union,
    subtract,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

CAR_COLOURS = tuple(colour(c) for c in ("#2b62c4", "#eebd24", "#e6e4de", "#3a9b56", "#e5762a", "#9aa2aa"))


def car(draw: Draw) -> ProceduralObject:
    """A small saloon: body, cabin with inset windows, four wheels, lamps and bumpers."""
    half, length = draw.vary(0.33, 0.04), draw.vary(0.68, 0.04)
    belt, roof = draw.uniform(0.10, 0.14), draw.uniform(0.38, 0.43)
    wheel, axle = draw.uniform(0.175, 0.195), -0.15
    front, rear = draw.uniform(0.38, 0.41), draw.uniform(-0.43, -0.39)
    screen, boot = draw.uniform(0.22, 0.30), draw.uniform(-0.58, -0.50)
    middle, edge = (screen + boot) / 2, 0.07
    sides = [  # of the body, (z, y), before it grows by `edge`
        (-length + 0.10, -0.12),
        (-length + edge, 0.0),
        (-length + 0.10, belt - edge),
        (screen, belt - edge),
        (length - 0.14, belt - edge - 0.05),
        (length - edge, -0.03),
        (length - 0.10, -0.12),
    ]
    house = [(boot, belt - 0.08), (boot + 0.13, roof), (screen - 0.19, roof), (screen + 0.02, belt - 0.08)]
    low, high = belt + 0.055, roof - 0.055
    panes = [(boot + 0.10, low), (boot + 0.165, high), (screen - 0.20, high), (screen - 0.10, low)]

    def wheels(p: Coordinates, radius: float, inner: float, outer: float, rounding: float) -> Distance:
        across = p[0].abs() - (inner + outer) / 2
        size = (radius, (outer - inner) / 2)
        return union(*(box2(norm(p[1] - axle, p[2] - z), across, size, rounding) for z in (front, rear)))

    def body(p: Coordinates) -> Distance:
        hull = extrude(polygon(p[2], p[1], sides), p[0], half - edge) - edge
        return subtract(hull, wheels(p, wheel + 0.035, half - 0.03, half + 0.3, 0.0))

    def cabin(p: Coordinates) -> Distance:
        side = polygon(p[2], p[1], house)
        # The side walls lean inwards, by 0.25 to a height of 1.
        wall = (p[0].abs() + 0.25 * (p[1] - belt) - (half - 0.04)) * 0.97
        return smooth_intersection(side, wall, 0.14) - 0.02

    def openings(p: Coordinates) -> Distance:
        """Prisms through the cabin: side windows with a pillar between them, and both screens."""
        along = (p[2] - middle).abs()
        side = subtract(polygon(p[2], p[1], panes), along - 0.035)
        screens = box2(p[0], p[1] - (low + high) / 2, (half - 0.125, (high - low) / 2 + 0.01))
        return union(side, smooth_intersection(screens, (screen - boot) / 2 - 0.14 - along, 0.01))

    def pillars(p: Coordinates) -> Distance:
        return subtract(cabin(p), openings(p))

    def windows(p: Coordinates) -> Distance:
        return cabin(p) + 0.022

    def tyres(p: Coordinates) -> Distance:
        return wheels(p, wheel, half - 0.14, half + 0.02, 0.04)

    def hubs(p: Coordinates) -> Distance:
        return wheels(p, 0.58 * wheel, half - 0.10, half + 0.035, 0.02)

    def headlamps(p: Coordinates) -> Distance:
        return ellipsoid(mirror_x(p), (half - 0.12, 0.005, length - 0.015), (0.085, 0.07, 0.05))

    def tail_lamps(p: Coordinates) -> Distance:
        return box(mirror_x(p), (half - 0.12, 0.02, 0.02 - length), (0.075, 0.055, 0.05), 0.03)

    def bumpers(p: Coordinates) -> Distance:
        ends = (p[0], p[1], p[2].abs() - (length - 0.03))
        bars = box(ends, (0.0, -0.125, 0.0), (half - 0.01, 0.06, 0.07), 0.05)
        grille = box(p, (0.0, -0.01, length - 0.02), (0.10, 0.05, 0.045), 0.02)
        return smooth_union(bars, grille, 0.02)

    paint = tint(draw, draw.usually(colour("#cf2620"), CAR_COLOURS))
    gloss = draw.uniform(0.3, 0.45)

    def pane(p: Coordinates) -> Tensor:
        return mix(colour("#2c3a4b"), colour("#65809b"), ramp(p[1], belt, roof))

    parts = (
        Part("body", body, plain(paint), gloss),
        Part("cabin", pillars, plain(paint), gloss),
        Part("windows", windows, pane, 0.3),
        Part("tyres", tyres, plain(tint(draw, colour("#35353a"))), 0.9),
        Part("hubs", hubs, plain(tint(draw, colour("#c9ccd0"), 0.05)), 0.35, 0.5),
        Part("headlamps", headlamps, plain(colour("#f6edc4")), 0.3),
        Part("tail lamps", tail_lamps, plain(colour("#8e1010")), 0.35),
        Part("bumpers", bumpers, plain(colour("#6b6e74")), 0.6),
    )
    return place("car", parts)


def rocket(draw: Draw) -> ProceduralObject:
    """A spindle that stands on four fins, with a nose of another colour, a porthole at +z and a nozzle."""
    radius, length = draw.vary(0.28, 0.06), draw.vary(0.54, 0.06)
    fin, drop = draw.vary(0.27, 0.08), draw.uniform(0.16, 0.24)
    nose = draw.vary(0.30, 0.1)
    blade = [
        (0.10, 0.05 - 0.45 * length),
        (radius + 0.02, -0.35 * length),
        (radius + fin, -length - drop + 0.10),
    ]
    blade += [(radius + fin, -length - drop), (radius + fin - 0.08, -length - drop), (0.10, -length + 0.02)]

    def hull(p: Coordinates) -> Distance:
        lower = round_cone(p, (0.0, 0.0, 0.0), (0.0, 0.17 - length, 0.0), radius, 0.66 * radius)
        upper = round_cone(p, (0.0, 0.0, 0.0), (0.0, length + 0.10, 0.0), radius, 0.045)
        belly = ellipsoid(p, (0.0, 0.08, 0.0), (radius * 1.08, 0.95 * length, radius * 1.08))
        return smooth_union(union(lower, upper), belly, 0.08)

    def skin(p: Coordinates) -> Distance:
        return smooth_intersection(hull(p), p[1] - nose - 0.05, 0.01)

    def tip(p: Coordinates) -> Distance:
        return smooth_intersection(hull(p) - 0.015, nose - p[1], 0.02)

    def fins(p: Coordinates) -> Distance:
        x, y, z = sectors(p, 4, math.pi / 4)
        return extrude(polygon(z, y, blade), x, 0.025) - 0.035

    def nozzle(p: Coordinates) -> Distance:
        return round_cone(p, (0.0, 0.12 - length, 0.0), (0.0, -length - 0.01, 0.0), 0.10, 0.15)

    def disc(p: Coordinates, size: float, out: float) -> Distance:
        return box2(norm(p[0], p[1] - 0.06), p[2] - 0.9 * radius, (size, 0.15 * radius + out), 0.02)

    def frame(p: Coordinates) -> Distance:
        return disc(p, 0.145, 0.045)

    def pane(p: Coordinates) -> Distance:
        return disc(p, 0.085, 0.06)

    shell = tint(draw, draw.usually(colour("#e9e7e2"), (colour("#c3c8ce"), colour("#efb93a")), 0.7), 0.06)
    trim = tint(draw, draw.usually(colour("#cf2a22"), CAR_COLOURS, 0.6))
    steel, metal = tint(draw, colour("#8f959c")), draw.uniform(0.3, 0.6)
    parts = (
        Part("hull", skin, plain(shell), 0.4),
        Part("nose", tip, plain(trim), 0.4),
        Part("fins", fins, plain(trim), 0.4),
        Part("nozzle", nozzle, plain(shade(steel, 0.6)), 0.5, metal),
        Part("frame", frame, plain(steel), 0.4, metal),
        Part("pane", pane, plain(tint(draw, colour("#4f9bd0"))), 0.3),
    )
    return place("rocket", parts)
