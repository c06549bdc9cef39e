"""Categories car and rocket. The front of the car and the portholes of the rocket are at +z."""

import math

import torch
from torch import Tensor

from dataset.procedural.colour import colour, mix, over, plain, ramp, shade, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    box,
    box2,
    extrude,
    mirror_x,
    norm,
    polygon,
    revolve,
    round_cone,
    sectors,
    smooth_intersection,
    smooth_union,
    spline,
    subtract,
    torus,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

CAR_COLOURS = tuple(colour(c) for c in ("#2b62c4", "#eebd24", "#e6e4de", "#3a9b56", "#e5762a", "#9aa2aa"))
TRIMS = tuple(colour(c) for c in ("#2b62c4", "#e5762a", "#3a9b56", "#3a3d44"))
GLASS, RUBBER, CHROME = colour("#26323f"), colour("#2b2b2e"), colour("#c9ccd0")


def car(draw: Draw) -> ProceduralObject:
    """Return a saloon or a hatchback with dark windows, lamps, bumpers, number plates and dark tyres."""
    half, length = draw.vary(0.295, 0.04), draw.vary(0.70, 0.04)
    belt, roof = draw.uniform(0.055, 0.08), draw.uniform(0.255, 0.30)
    wheel, axle = draw.uniform(0.135, 0.152), -0.145
    front, rear = draw.uniform(0.41, 0.44) * length / 0.7, -draw.uniform(0.41, 0.44) * length / 0.7
    hatch = draw.chance(0.5)
    screen = draw.uniform(0.24, 0.30)
    boot = -length + 0.05 if hatch else -draw.uniform(0.48, 0.54)
    roof_front = screen - draw.uniform(0.20, 0.25)
    roof_rear = boot + (draw.uniform(0.10, 0.16) if hatch else draw.uniform(0.20, 0.26))
    edge = 0.045
    sides = [  # side view (z, y) of the body, before it is enlarged by `edge`
        (-length + 0.07, -0.13),
        (-length + edge, 0.0),
        (-length + edge + 0.02, belt - edge - 0.005),
        (screen, belt - edge),
        (length - 0.22, belt - edge - 0.025),
        (length - edge - 0.03, -0.015),
        (length - edge, -0.05),
        (length - 0.06, -0.13),
    ]
    house = [(boot, belt - 0.06), (roof_rear, roof), (roof_front, roof), (screen + 0.04, belt - 0.06)]
    low, high = belt + 0.03, roof - 0.035
    pillar = draw.uniform(-0.08, 0.0)

    def wheels(p: Coordinates, radius: float, inner: float, outer: float, rounding: float) -> Distance:
        across = p[0].abs() - (inner + outer) / 2
        size = (radius, (outer - inner) / 2)
        return union(*(box2(norm(p[1] - axle, p[2] - z), across, size, rounding) for z in (front, rear)))

    def wall(p: Coordinates) -> Distance:
        """Return the signed distance to the side walls of the cabin, negative between them.

        The walls lean inwards by 0.3 per unit of height.
        """
        return (p[0].abs() + 0.3 * (p[1] - belt) - (half - 0.02)) * 0.95

    def body(p: Coordinates) -> Distance:
        hull = extrude(polygon(p[2], p[1], sides), p[0], half - edge) - edge
        cabin = smooth_intersection(polygon(p[2], p[1], house), wall(p), 0.08)
        shell = smooth_union(hull, cabin, 0.02)
        return subtract(shell, wheels(p, wheel + 0.028, half - 0.05, half + 0.3, 0.0))

    def bumpers(p: Coordinates) -> Distance:
        ends = (p[0], p[1], p[2].abs() - (length - 0.035))
        return box(ends, (0.0, -0.125, 0.0), (half - 0.01, 0.05, 0.06), 0.04)

    def mirrors(p: Coordinates) -> Distance:
        return box(mirror_x(p), (half + 0.005, belt + 0.03, screen - 0.03), (0.05, 0.03, 0.03), 0.025)

    def tyres(p: Coordinates) -> Distance:
        return wheels(p, wheel, half - 0.13, half + 0.005, 0.03)

    def hubs(p: Coordinates) -> Distance:
        return wheels(p, 0.62 * wheel, half - 0.10, half + 0.015, 0.015)

    paint = tint(draw, draw.usually(colour("#cf2620"), CAR_COLOURS))
    gloss = draw.uniform(0.3, 0.4)
    spokes, turn = draw.integer(5, 7), draw.angle()
    lamp = draw.uniform(0.055, 0.075)

    def slope(p: Coordinates, foot: float, top: float, outwards: float) -> Tensor:
        """Return the signed distance to the plane of the windscreen or the rear window.

        The distance is positive outside the cabin.

        The plane contains (z, y) = (foot, belt) and (top, roof). outwards: 1 for the windscreen, −1 for the
        rear window.
        """
        y, z = roof - belt, (foot - top) * outwards
        return (z * (p[1] - belt) + y * (p[2] - foot) * outwards) / math.hypot(y, z)

    def window(p: Coordinates) -> Tensor:
        """Return 1 on the windows and 0 on the pillars.

        The pillars are at the corners of the cabin and between the doors.
        """
        side = -wall(p)
        ahead = -slope(p, screen + 0.01, roof_front, 1.0)
        behind = -slope(p, boot, roof_rear, -1.0)
        corner = torch.minimum(torch.maximum(side, ahead), torch.maximum(side, behind))
        post = torch.maximum((p[2] - pillar).abs(), side - 0.03)
        band = torch.minimum(ramp(p[1], low, low + 0.012), ramp(p[1], high, high - 0.012))
        pane = torch.minimum(ramp(corner, 0.045, 0.057), ramp(post, 0.016, 0.024))
        return torch.minimum(band, pane)

    def painted(p: Coordinates) -> Tensor:
        x, y, z = p[0].abs(), p[1], p[2]
        skin = plain(paint)(p)
        # Paint the gaps at the front and rear edges of the doors, and the door handles.
        flank = ramp(x, half - 0.05, half - 0.04) * ramp(y, belt + 0.02, belt + 0.01) * ramp(y, -0.14, -0.13)
        gaps = torch.minimum(
            torch.minimum((z - screen + 0.05).abs(), (z - pillar).abs()), (z - rear - 0.19).abs()
        )
        skin = over(skin, shade(paint, 0.35), flank * ramp(gaps, 0.012, 0.006))
        grips = torch.minimum((z - pillar - 0.06).abs(), (z - rear - 0.25).abs())
        skin = over(skin, shade(paint, 0.4), flank * (norm(grips / 3, y - belt + 0.045) < 0.012))
        skin = over(skin, RUBBER, ramp(y, -0.125, -0.135))
        reach = norm(y - axle, torch.minimum((z - front).abs(), (z - rear).abs()))
        skin = over(
            skin, RUBBER, ramp(reach, wheel + 0.036, wheel + 0.03) * ramp(x, half + 0.02, half - 0.005)
        )
        skin = over(skin, glass(y), window(p))
        lights = ramp((x - half + 0.095).abs(), lamp + 0.012, lamp) * ramp((y + 0.015).abs(), 0.045, 0.037)
        skin = over(skin, colour("#fbf3d2"), lights * ramp(z, length - 0.2, length - 0.19))
        skin = over(skin, colour("#a01010"), lights * ramp(z, 0.14 - length, 0.13 - length))
        bars = ramp((x - 0.0).abs(), half - 0.165, half - 0.175) * ramp((y + 0.03).abs(), 0.034, 0.028)
        return over(skin, RUBBER, bars * ramp(z, length - 0.12, length - 0.11))

    def glass(y: Tensor) -> tuple[Tensor, ...]:
        """Return the colour of the windows at height y: dark at the bottom, bright at the top."""
        sky = ramp(y, belt, roof)
        return tuple(a + (b - a) * sky for a, b in zip(GLASS, colour("#6f8398"), strict=True))

    def plates(p: Coordinates) -> Tensor:
        plate = (p[0].abs() < 0.10) & ((p[1] + 0.12).abs() < 0.026) & (p[2].abs() > length - 0.02)
        return over(plain(colour("#3c3e42"))(p), colour("#ece9dc"), plate.to(p[0]))

    def alloy(p: Coordinates) -> Tensor:
        """Return the albedo of the wheels: light metal spokes in front of a dark disc."""
        z = torch.where(p[2] > 0, p[2] - front, p[2] - rear)
        radius, angle = norm(p[1] - axle, z), torch.atan2(p[1] - axle, z)
        spoke = ramp(torch.cos(angle * spokes + turn), -0.3, 0.0)
        rim = torch.maximum(ramp(radius, 0.49 * wheel, 0.53 * wheel), ramp(radius, 0.2 * wheel, 0.16 * wheel))
        return mix(colour("#3c3e42"), CHROME, torch.maximum(spoke, rim))

    parts = (
        Part("body", body, painted, gloss),
        Part("bumpers", bumpers, plates, 0.6),
        Part("mirrors", mirrors, plain(paint), gloss),
        Part("tyres", tyres, plain(RUBBER), 0.9),
        Part("hubs", hubs, alloy, 0.35, 0.5),
    )
    return place("car", parts)


def rocket(draw: Draw) -> ProceduralObject:
    """Return a slender rocket with a pointed nose, fins, a nozzle, portholes and sometimes two boosters."""
    radius, length = draw.vary(0.185, 0.08), draw.vary(0.72, 0.04)
    fins, phase = draw.usually((4, math.pi / 4), ((3, 0.0), (3, math.pi)), 0.6)
    out, drop = draw.vary(0.24, 0.1), draw.uniform(0.08, 0.16)
    nose = draw.uniform(0.26, 0.34)
    boosters = draw.chance(0.3)
    belly = draw.uniform(1.0, 1.12)
    tail = draw.uniform(0.78, 0.92) * radius
    contour = spline(
        [
            (tail, -length),
            (radius, -0.55 * length),
            (belly * radius, -0.05 * length),
            (radius, nose),
            (0.62 * radius, nose + 0.58 * (length - nose)),
            (0.02, length),
        ],
        3,
    )
    outline = [(-0.2, -length), *contour, (-0.2, length)]
    blade = [
        (0.10, 0.10 - 0.5 * length),
        (radius, -0.45 * length),
        (radius + out, -length + 0.02),
        (radius + out, -length - drop),
        (radius + out - 0.07, -length - drop),
        (radius + 0.02, -length + 0.04),
        (0.10, -length + 0.04),
    ]
    holes = draw.usually((0.16, -0.16), ((0.16,), (0.20, 0.0, -0.20)), 0.5)
    pane = draw.uniform(0.062, 0.07)

    def hull(p: Coordinates) -> Distance:
        return polygon(*revolve(p), outline) - 0.012

    def fin(p: Coordinates) -> Distance:
        x, y, z = sectors(p, fins, phase)
        return extrude(polygon(z, y, blade), x, 0.012) - 0.028

    def nozzle(p: Coordinates) -> Distance:
        bell = round_cone(p, (0.0, 0.06 - length, 0.0), (0.0, -length - 0.05, 0.0), 0.09, 0.125)
        return smooth_intersection(bell, -(p[1] + length + 0.07), 0.02)

    def frames(p: Coordinates) -> Distance:
        rings = [torus((p[0], p[2] - 0.96 * radius, p[1] - y), (0.0, 0.0, 0.0), pane, 0.026) for y in holes]
        return union(*rings)

    def side_boosters(p: Coordinates) -> Distance:
        x, y, z = mirror_x(p)
        start, end = (1.55 * radius, -length + 0.02, 0.0), (1.55 * radius, -0.02, 0.0)
        tube = round_cone((x, y, z), start, end, 0.45 * radius, 0.45 * radius)
        tip = round_cone((x, y, z), end, (end[0] - 0.02, 0.16, 0.0), 0.45 * radius, 0.035)
        return smooth_intersection(union(tube, tip), -(y + length + 0.02), 0.02)

    shell = tint(draw, draw.usually(colour("#e9e7e2"), (colour("#c3c8ce"), colour("#efb93a")), 0.7), 0.06)
    trim = tint(draw, draw.usually(colour("#cf2a22"), TRIMS, 0.6))
    steel, metal = tint(draw, colour("#8f959c")), draw.uniform(0.3, 0.6)
    chequered, banded = draw.chance(0.45), draw.chance(0.6)

    def painted(p: Coordinates) -> Tensor:
        """Return the albedo: coloured nose and bands, chequered band, dark gaps between plates, portholes."""
        skin = plain(shell)(p)
        gap = (torch.remainder(p[1] / 0.18 + 0.35, 1.0) - 0.5).abs() * 0.18
        skin = over(skin, shade(shell, 0.6), ramp(gap, 0.010, 0.005))
        if banded:
            skin = over(skin, trim, ramp((p[1] - nose + 0.10).abs(), 0.026, 0.020))
        if chequered:
            squares = torch.cos(torch.atan2(p[0], p[2]) * 4) * torch.sin(
                (p[1] + 0.62 * length) * math.pi / 0.11
            )
            belt = ramp((p[1] + 0.62 * length).abs(), 0.115, 0.11)
            skin = over(skin, RUBBER, belt * ramp(squares, -0.05, 0.05))
        skin = over(
            skin,
            trim,
            torch.maximum(ramp(p[1], nose + 0.01, nose + 0.02), ramp(p[1], 0.08 - length, 0.07 - length)),
        )
        for y in holes:
            glass = ramp(norm(p[0], p[1] - y), pane + 0.005, pane - 0.005) * ramp(p[2], 0.0, 0.02)
            skin = over(skin, colour("#2f6f9f"), glass)
        return skin

    def booster_paint(p: Coordinates) -> Tensor:
        return mix(shade(shell, 0.92), trim, ramp(p[1], -0.01, 0.0))

    parts = [
        Part("hull", hull, painted, 0.4),
        Part("fins", fin, plain(trim), 0.4),
        Part("nozzle", nozzle, plain(shade(steel, 0.45)), 0.5, metal),
        Part("frames", frames, plain(steel), 0.4, metal),
    ]
    if boosters:
        parts.append(Part("boosters", side_boosters, booster_paint, 0.4))
    return place("rocket", tuple(parts))
