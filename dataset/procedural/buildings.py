"""Cottage and castle tower. Their doors are at +z."""

import torch
from torch import Tensor

from dataset.procedural.colour import colour, mix, plain, ramp, shade, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    box,
    box2,
    extrude,
    norm,
    polygon,
    revolve,
    sectors,
    smooth_intersection,
    smooth_union,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

ROOFS = tuple(colour(c) for c in ("#8a4a2c", "#6b4a36", "#c26a3a"))
DOORS = tuple(colour(c) for c in ("#2f6db5", "#3f8a4c", "#b8322e"))


def cottage(draw: Draw) -> ProceduralObject:
    """White walls under a steep roof, its gable and the door at +z; windows and a chimney."""
    half, depth = draw.vary(0.46, 0.06), draw.vary(0.46, 0.07)
    eaves, rise = draw.vary(0.57, 0.05), draw.vary(0.42, 0.07)
    thick, over = draw.uniform(0.055, 0.065), draw.uniform(0.05, 0.08)
    door, lintel = draw.uniform(0.115, 0.13), draw.vary(0.36, 0.06)
    side, setback = draw.usually(1.0, (-1.0,)), draw.uniform(-0.30, -0.10)
    pane = draw.uniform(0.08, 0.095)
    ridge, slope = eaves + rise, rise / half

    def walls(p: Coordinates) -> Distance:
        outline = [(-half, 0.0), (half, 0.0), (half, eaves), (0.0, ridge), (-half, eaves)]
        return extrude(polygon(p[0], p[1], outline), p[2], depth)

    def roof(p: Coordinates) -> Distance:
        reach = half + over
        low = ridge - slope * reach
        right = [(0.0, ridge + 0.04), (reach, low + 0.04), (reach, low + 0.01), (0.0, ridge + 0.01)]
        chevron = [*right, (-reach, low + 0.01), (-reach, low + 0.04)]
        return extrude(polygon(p[0], p[1], chevron), p[2], depth + over - 0.5 * thick) - thick

    def plinth(p: Coordinates) -> Distance:
        return box(p, (0.0, 0.02, 0.0), (half + 0.04, 0.07, depth + 0.04), 0.02)

    def arch(p: Coordinates, grow: float, out: float) -> Distance:
        leaf = box2(p[0], p[1] - lintel / 2, (door + grow, lintel / 2 + grow), 0.5 * door)
        return extrude(leaf, p[2] - depth, out)

    def gable_window(p: Coordinates, grow: float, out: float) -> Distance:
        round_one = norm(p[0], p[1] - eaves - 0.30 * rise) - (pane + grow)
        return extrude(round_one, p[2].abs() - depth, out)

    def side_windows(p: Coordinates, grow: float, out: float) -> Distance:
        across = (p[2].abs() - 0.48 * depth, p[1] - 0.45 * eaves)
        return extrude(box2(*across, (pane + grow, pane + grow), 0.02), p[0].abs() - half, out)

    def windows(p: Coordinates, grow: float, out: float) -> Distance:
        return union(gable_window(p, grow, out), side_windows(p, grow, out))

    def chimney(p: Coordinates) -> Distance:
        x = side * 0.55 * half
        shaft = box(p, (x, ridge - 0.08, setback), (0.10, 0.26, 0.10), 0.02)
        return smooth_union(shaft, box(p, (x, ridge + 0.16, setback), (0.13, 0.05, 0.13), 0.02), 0.02)

    def knob(p: Coordinates) -> Distance:
        return norm(p[0] - 0.5 * door, p[1] - 0.42 * lintel, p[2] - depth - 0.04) - 0.035

    wood = tint(draw, draw.usually(colour("#7a4526"), DOORS, 0.6))
    tiles = tint(draw, draw.usually(colour("#b23a26"), ROOFS, 0.55))
    frame = tint(draw, colour("#7d5a3c"))

    def tiling(p: Coordinates) -> Tensor:
        """Courses of tiles, darker towards their upper edge."""
        course = torch.remainder(p[1] * 7.0, 1.0)
        return mix(shade(tiles, 0.72), tiles, ramp((course - 0.5).abs(), 0.5, 0.25))

    parts = (
        Part("walls", walls, plain(tint(draw, colour("#f0e8d6"), 0.05)), 0.85),
        Part("roof", roof, tiling, 0.8),
        Part("plinth", plinth, plain(tint(draw, colour("#8d8a84"))), 0.85),
        Part("chimney", chimney, plain(tint(draw, colour("#9a5a48"))), 0.85),
        Part("frames", lambda p: windows(p, 0.045, 0.025), plain(frame), 0.7),
        Part("windows", lambda p: windows(p, 0.0, 0.04), plain(tint(draw, colour("#5f9fd0"))), 0.3),
        Part("door frame", lambda p: arch(p, 0.045, 0.03), plain(frame), 0.7),
        Part("door", lambda p: arch(p, 0.0, 0.05), plain(wood), 0.7),
        Part("knob", knob, plain(colour("#e0b440")), 0.35, 0.6),
    )
    return place("cottage", parts)


def castle_tower(draw: Draw) -> ProceduralObject:
    """A round tower of blocks that widens below a ring of battlements; slits and an arched door."""
    radius, tall = draw.vary(0.34, 0.06), draw.vary(1.1, 0.05)
    crown, lip = draw.uniform(0.10, 0.13), draw.uniform(0.13, 0.17)
    merlons, tooth = draw.integer(6, 7), draw.uniform(0.15, 0.18)
    batter = draw.uniform(0.05, 0.09)
    door, lintel = draw.uniform(0.12, 0.135), draw.vary(0.36, 0.06)
    courses, blocks = draw.integer(8, 9), draw.integer(9, 11)
    rim, wall = radius + crown, 0.13

    def tower(p: Coordinates) -> Distance:
        r, y = revolve(p)
        foot = batter * ramp(y, 0.45, 0.0) ** 2
        shaft = box2(r - foot, y - tall / 2, (radius, tall / 2), 0.02) * 0.95
        low = tall - lip - 0.16
        cornice = [(0.0, low), (radius, low), (rim, tall - lip), (rim, tall), (0.0, tall)]
        return smooth_union(shaft, polygon(r, y, cornice), 0.04)

    def battlements(p: Coordinates) -> Distance:
        r, y = revolve(p)
        ring = box2(r - (rim - wall / 2), y - tall, (wall / 2, tooth + 0.05), 0.02)
        x, _, z = sectors(p, merlons)
        gap = torch.maximum(x.abs() - 0.26 * rim, -z)
        return smooth_intersection(ring, gap, 0.02)

    def arch(p: Coordinates, grow: float, out: float) -> Distance:
        leaf = union(
            box2(p[0], p[1] - lintel / 2, (door + grow, lintel / 2)), norm(p[0], p[1] - lintel) - door - grow
        )
        return extrude(leaf, p[2] - radius - 0.5 * batter, 0.02 + out)

    def slits(p: Coordinates, grow: float, out: float) -> Distance:
        x, y, z = sectors(p, 3)
        slit = box2(x, y - 0.66 * tall, (0.05 + grow, 0.12 + grow), 0.045)
        return extrude(slit, z - radius, out)

    stone = tint(draw, draw.usually(colour("#9a9a98"), (colour("#b8a88a"), colour("#7d828a")), 0.7))

    def masonry(p: Coordinates) -> Tensor:
        """Blocks in courses, each course half a block on; mortar darker, every block its own grey."""
        height = p[1] * (courses / tall)
        row = torch.floor(height)
        turn = torch.atan2(p[0], p[2]) * (blocks / (2 * torch.pi)) + 0.5 * row
        edge = torch.minimum(
            0.5 - (torch.remainder(turn, 1.0) - 0.5).abs(), 0.5 - (torch.remainder(height, 1.0) - 0.5).abs()
        )
        own = 0.5 + 0.5 * torch.sin(3.7 * row + 2.3 * torch.remainder(torch.floor(turn), blocks))
        face = mix(shade(stone, 0.82), shade(stone, 1.1), own)
        return face * (0.6 + 0.4 * ramp(edge, 0.03, 0.1))[:, None]

    parts = (
        Part("tower", tower, masonry, 0.85),
        Part("battlements", battlements, masonry, 0.85),
        Part("slit frames", lambda p: slits(p, 0.045, 0.03), plain(shade(stone, 1.25)), 0.85),
        Part("slits", lambda p: slits(p, 0.0, 0.045), plain(colour("#2c2c30")), 0.8),
        Part("door frame", lambda p: arch(p, 0.05, 0.03), plain(shade(stone, 1.25)), 0.85),
        Part("door", lambda p: arch(p, 0.0, 0.05), plain(tint(draw, colour("#6e3f20"))), 0.7),
    )
    return place("castle_tower", parts)
