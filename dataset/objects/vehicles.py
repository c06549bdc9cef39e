"""Car. It drives towards +z."""

from torch import Tensor

from dataset.objects.colour import colour, mix, plain, ramp, tint
from dataset.objects.draw import Draw
from dataset.objects.primitives import (
    Coordinates,
    Distance,
    box,
    box2,
    ellipsoid,
    extrude,
    mirror_x,
    norm,
    polygon,
    shift,
    smooth_intersection,
    subtract,
    union,
)
from dataset.objects.solid import Part, ProceduralObject, place

CAR_COLOURS = tuple(colour(c) for c in ("#2b62c4", "#eebd24", "#e6e4de", "#3a9b56", "#e5762a", "#9aa2aa"))


def car(draw: Draw) -> ProceduralObject:
    """A small saloon: body, cabin with inset windows, four wheels, lamps and bumpers."""
    half, length = draw.vary(0.33, 0.05), draw.vary(0.70, 0.04)
    belt, roof = draw.uniform(0.10, 0.14), draw.uniform(0.36, 0.42)
    wheel, front, rear = draw.uniform(0.165, 0.185), draw.uniform(0.40, 0.44), draw.uniform(-0.44, -0.40)
    screen, boot = draw.uniform(0.22, 0.32), draw.uniform(-0.60, -0.50)
    axle = -0.16
    edge = 0.05
    profile = [
        (-length + edge, -0.15),
        (-length, 0.0),
        (-length + 0.06, belt - 0.04),
        (boot, belt - edge + 0.01),
        (screen, belt - edge + 0.01),
        (length - 0.10, belt - 0.09),
        (length, 0.0 - 0.03),
        (length - edge, -0.15),
    ]
    house = [(boot, belt - 0.06), (boot + 0.14, roof), (screen - 0.20, roof), (screen, belt - 0.06)]
    glass = [
        (boot + 0.12, belt + 0.05),
        (boot + 0.19, roof - 0.05),
        (screen - 0.22, roof - 0.05),
        (screen - 0.11, belt + 0.05),
    ]

    def wheels(p: Coordinates, radius: float, inner: float, outer: float, rounding: float) -> Distance:
        x, y, z = mirror_x(p)
        across = x - (inner + outer) / 2
        pair = [
            box2(norm(y - axle, z - at), across, (radius, (outer - inner) / 2), rounding)
            for at in (front, rear)
        ]
        return union(*pair)

    def body(p: Coordinates) -> Distance:
        hull = extrude(polygon(p[2], p[1], profile), p[0], half - edge) - edge
        return subtract(hull, wheels(p, wheel + 0.035, half - 0.15, half + 0.3, 0.0))

    def cabin(p: Coordinates) -> Distance:
        side = polygon(p[2], p[1], house)
        # The side walls lean inwards: 0.25 to the height of 1.
        wall = (p[0].abs() + 0.25 * (p[1] - belt) - (half - 0.04)) * 0.97
        return smooth_intersection(side, wall, 0.08) - 0.02

    def openings(p: Coordinates) -> Distance:
        """Prisms through the cabin: side windows with a pillar between them, and both screens."""
        side = subtract(polygon(p[2], p[1], glass), (p[2] - (boot + screen) / 2).abs() - 0.035)
        screens = box2(p[0], p[1] - (belt + roof) / 2, (half - 0.12, (roof - belt) / 2 - 0.045))
        ends = -((p[2] - (boot + screen) / 2).abs() - (screen - boot) / 2 + 0.13)
        return union(side, smooth_intersection(screens, ends, 0.01))

    def pillars(p: Coordinates) -> Distance:
        return subtract(cabin(p), openings(p))

    def windows(p: Coordinates) -> Distance:
        return cabin(p) + 0.022

    def tyres(p: Coordinates) -> Distance:
        return wheels(p, wheel, half - 0.14, half + 0.015, 0.04)

    def hubs(p: Coordinates) -> Distance:
        return wheels(p, 0.55 * wheel, half - 0.10, half + 0.03, 0.02)

    def lamps(p: Coordinates) -> Distance:
        return ellipsoid(mirror_x(p), (half - 0.11, 0.0, length - 0.02), (0.075, 0.06, 0.05))

    def tail(p: Coordinates) -> Distance:
        return box(mirror_x(p), (half - 0.10, 0.015, -length - 0.01), (0.07, 0.05, 0.05), 0.02)

    def bumpers(p: Coordinates) -> Distance:
        x, y, z = p
        ends = (x, y, (z.abs() - (length - 0.02)))
        grille = box(shift(p, (0.0, -0.01, length)), (0.0, 0.0, 0.0), (0.10, 0.04, 0.045), 0.02)
        return union(box(ends, (0.0, -0.13, 0.0), (half, 0.055, 0.06), 0.04), grille)

    paint = tint(draw, draw.usually(colour("#cf2620"), CAR_COLOURS))
    rubber, rim = tint(draw, colour("#35353a")), tint(draw, colour("#c9ccd0"), 0.05)
    gloss = draw.uniform(0.3, 0.45)

    def pane(p: Coordinates) -> Tensor:
        return mix(colour("#3a4a5c"), colour("#6f8aa3"), ramp(p[1], belt, roof))

    parts = (
        Part("body", body, plain(paint), gloss),
        Part("cabin", pillars, plain(paint), gloss),
        Part("windows", windows, pane, 0.3),
        Part("tyres", tyres, plain(rubber), 0.9),
        Part("hubs", hubs, plain(rim), 0.35, 0.5),
        Part("lamps", lamps, plain(colour("#f6edc4")), 0.3),
        Part("tail lamps", tail, plain(colour("#8e1010")), 0.35),
        Part("bumpers", bumpers, plain(colour("#6b6e74")), 0.6),
    )
    return place("car", parts)
