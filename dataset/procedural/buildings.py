"""Categories cottage and castle tower. The doors are at +z."""

import math

import torch
from torch import Tensor

from dataset.procedural.colour import Colour, colour, mix, over, plain, ramp, shade, tint
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
    shift,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place

ROOFS = tuple(colour(c) for c in ("#8a4a2c", "#6b4a36", "#c26a3a"))
DOORS = tuple(colour(c) for c in ("#2f6db5", "#3f8a4c", "#b8322e"))
GLASS = colour("#2f4a63")


def blocks(along: Tensor, up: Tensor, long: float, high: float) -> tuple[Tensor, Tensor]:
    """Divide a plane into the blocks of a wall.

    along, up: coordinates in the plane [N]. long: length of a block. high: height of a row. Each row is
    shifted by half a block relative to the row below. Returns the distance to the nearest joint and a random
    number in [0, 1] that is constant within a block, both [N].
    """
    row = torch.floor(up / high)
    place_in_row = along / long + 0.5 * row
    column = torch.floor(place_in_row)
    across = 0.5 - (place_in_row - column - 0.5).abs()
    upward = 0.5 - (up / high - row - 0.5).abs()
    own = torch.remainder(torch.sin(12.9898 * column + 78.233 * row) * 43.7585, 1.0)
    return torch.minimum(across * long, upward * high), own


def masonry(base: Colour, joint: Colour, edge: Tensor, own: Tensor, contrast: float) -> Tensor:
    """Return the albedo of a wall: joints, and blocks with random shades of `base` within ±contrast.

    edge, own: the results of `blocks`.
    """
    face = mix(shade(base, 1 - contrast), shade(base, 1 + contrast), own)
    return over(face, joint, ramp(edge, 0.016, 0.008))


def cottage(draw: Draw) -> ProceduralObject:
    """Return a cottage with plastered, half-timbered or stone walls, a steep tiled roof and a chimney.

    The ridge is parallel to x, and the chimney is near one end of the ridge. The door is in the middle of the
    front at +z, between two windows. The back and each gable also have two windows.
    """
    half, depth = draw.vary(0.60, 0.05), draw.vary(0.42, 0.06)
    eaves, rise = draw.vary(0.55, 0.06), draw.vary(0.40, 0.08)
    thick, over_hang = draw.uniform(0.045, 0.055), draw.uniform(0.05, 0.08)
    door, lintel = draw.uniform(0.105, 0.12), draw.vary(0.35, 0.05)
    side, inset = draw.usually(1.0, (-1.0,)), draw.uniform(0.10, 0.20)
    pane = draw.uniform(0.080, 0.092)
    porch = draw.chance(0.4)
    ridge, slope = eaves + rise, rise / depth
    window_x, window_y = 0.58 * half, 0.50 * eaves
    steep = 1 / math.hypot(1.0, slope)

    def walls(p: Coordinates) -> Distance:
        outline = [(-depth, 0.0), (depth, 0.0), (depth, eaves), (0.0, ridge), (-depth, eaves)]
        return extrude(polygon(p[2], p[1], outline), p[0], half)

    def gable_roof(
        across: Tensor, up: Tensor, along: Tensor, top: float, wide: float, long: float
    ) -> Distance:
        """Return the distance to two roof slabs that meet at the height `top`.

        The slabs extend `wide` to each side of the ridge and `long` in both directions along it.
        """
        rise_to, fall_to = top + 0.1 * slope, top - slope * wide
        low = 0.02 / steep - thick / steep
        corners = [(-0.1, rise_to + low), (wide, fall_to + low)]
        corners += [(wide, fall_to + low + 1.8 * thick / steep), (-0.1, rise_to + low + 1.8 * thick / steep)]
        return extrude(polygon(across.abs(), up, corners), along, long)

    def roof(p: Coordinates) -> Distance:
        main = gable_roof(p[2], p[1], p[0], ridge, depth + over_hang, half + over_hang)
        if porch:
            main = torch.minimum(main, gable_roof(p[0], p[1], p[2] - depth, lintel + 0.25, 0.20, 0.20))
        return main

    def pediment(p: Coordinates) -> Distance:
        """Return the distance to the solid gable below the porch's roof."""
        low, top = lintel, lintel + 0.24
        wide = (top - low) / slope
        return extrude(polygon(p[0], p[1], [(-wide, low), (wide, low), (0.0, top)]), p[2] - depth, 0.17)

    def plinth(p: Coordinates) -> Distance:
        step = box(p, (0.0, 0.01, depth + 0.08), (door + 0.08, 0.05, 0.10), 0.02)
        return union(box(p, (0.0, 0.01, 0.0), (half + 0.03, 0.06, depth + 0.03), 0.02), step)

    def chimney(p: Coordinates) -> Distance:
        x, z = side * (half - inset), -0.12
        shaft = box(p, (x, ridge - 0.08, z), (0.085, 0.27, 0.085), 0.01)
        return union(shaft, box(p, (x, ridge + 0.15, z), (0.11, 0.035, 0.11), 0.015))

    def opening(p: Coordinates, grow: float, out: float) -> Distance:
        """Return the distance to the windows, enlarged by `grow` and extending `out` from the wall.

        The front and back walls have windows at (±window_x, window_y). Each gable has two windows at z = 0,
        one above the other.
        """
        size = (pane + grow, 1.1 * pane + grow)
        flat = box2(p[0].abs() - window_x, p[1] - window_y, size, 0.01)
        solid = extrude(flat, p[2].abs() - depth, out)
        ends = union(
            box2(p[2].abs() - 0.0, p[1] - window_y, size, 0.01),
            box2(p[2], p[1] - eaves - 0.35 * rise, (0.07 + grow, 0.075 + grow), 0.01),
        )
        return union(solid, extrude(ends, p[0].abs() - half, out))

    def leaf(p: Coordinates, grow: float, out: float) -> Distance:
        flat = box2(p[0], p[1] - lintel / 2, (door + grow, lintel / 2 + grow), 0.02)
        return extrude(flat, p[2] - depth, out)

    wood = tint(draw, draw.usually(colour("#7a4526"), DOORS, 0.5))
    tiles = tint(draw, draw.usually(colour("#b0402a"), ROOFS, 0.55))
    brick = tint(draw, colour("#9a5a48"))
    style = draw.usually("plaster", ("timber", "stone"), 0.45)
    plaster = tint(draw, colour("#f0e8d6"), 0.05)
    stone = tint(draw, colour("#c9bda6"), 0.06)
    beam = tint(draw, colour("#4a3020"))
    frame = tint(draw, draw.usually(colour("#f2efe8"), (beam, wood)), 0.04)
    shutters = draw.chance(0.5)
    course, width = draw.uniform(0.085, 0.10), draw.uniform(0.11, 0.13)

    def along_wall(p: Coordinates) -> Tensor:
        """Return the position along the wall: x on the front and the back, z on the gables."""
        return torch.where(half - p[0].abs() < 0.01, p[2], p[0])

    def wall_paint(p: Coordinates) -> Tensor:
        along = along_wall(p)
        if style == "stone":
            edge, own = blocks(along, p[1], 0.17, 0.085)
            face = masonry(stone, shade(stone, 0.55), edge, own, 0.22)
        else:
            face = plain(plaster)(p)
        if style == "timber":
            post = (torch.remainder(along / 0.3 + 0.5, 1.0) - 0.5).abs() * 0.3
            rail = torch.minimum((p[1] - eaves + 0.03).abs(), (p[1] - 0.10).abs())
            rail = torch.minimum(rail, (p[1] - eaves - 0.5 * rise).abs())
            brace = ((torch.remainder(along / 0.3, 1.0) - 0.5).abs() * 0.6 + p[1] - eaves + 0.02).abs() * 0.45
            beams = torch.minimum(torch.minimum(post, rail), torch.where(p[1] > eaves - 0.32, brace, post))
            face = over(face, beam, ramp(beams, 0.024, 0.017))
        if shutters:
            beside = ((p[0].abs() - window_x).abs() - pane - 0.075).abs()
            board = torch.maximum(beside - 0.045, (p[1] - window_y).abs() - 1.2 * pane)
            board = torch.maximum(board, depth - 0.03 - p[2].abs())
            face = over(face, wood, ramp(board, 0.005, -0.002))
        return face

    def tiling(p: Coordinates) -> Tensor:
        """Return the albedo of rows of tiles.

        Each row is shifted by half a tile relative to the next row, and each tile has a random shade.
        """
        drop = (ridge - p[1]) / (slope * steep)
        row = torch.floor(drop / course)
        lower = drop / course - row
        column = p[0] / width + 0.5 * row
        own = torch.remainder(torch.sin(12.9898 * torch.floor(column) + 78.233 * row) * 43.7585, 1.0)
        face = mix(shade(tiles, 0.75), shade(tiles, 1.2), own)
        gap = torch.minimum(0.5 - (torch.remainder(column, 1.0) - 0.5).abs(), 1 - lower)
        return over(face, shade(tiles, 0.35), ramp(gap, 0.14, 0.05))

    def bricks(p: Coordinates) -> Tensor:
        edge, own = blocks(p[0] + p[2], p[1], 0.085, 0.05)
        return masonry(brick, colour("#b8a898"), edge - 0.004, own, 0.25)

    def glazing(p: Coordinates) -> Tensor:
        """Return the albedo of the windows: glazing bars, and dark glass that is brighter at the top."""
        front = (p[2].abs() > depth - 0.06) & (p[0].abs() < half - 0.06)
        across = torch.where(front, p[0].abs() - window_x, p[2])
        height = torch.where(p[1] > eaves, p[1] - eaves - 0.35 * rise, p[1] - window_y)
        bar = torch.minimum(across.abs(), height.abs())
        glass = mix(GLASS, colour("#7fa6c4"), ramp(height, -pane, pane))
        return over(glass, frame, ramp(bar, 0.015, 0.009))

    def planks(p: Coordinates) -> Tensor:
        gap = (torch.remainder(p[0] / 0.05 + 0.5, 1.0) - 0.5).abs() * 0.05
        board = over(plain(wood)(p), shade(wood, 0.5), ramp(gap, 0.010, 0.005))
        board = over(board, GLASS, ((p[0].abs() < 0.05) & ((p[1] - 0.78 * lintel).abs() < 0.045)).to(p[0]))
        return over(
            board, colour("#e0b440"), ramp(norm(p[0] - 0.6 * door, p[1] - 0.45 * lintel), 0.024, 0.017)
        )

    parts = [
        Part("walls", walls, wall_paint, 0.85),
        Part("roof", roof, tiling, 0.8),
        Part("plinth", plinth, plain(tint(draw, colour("#8d8a84"))), 0.85),
        Part("chimney", chimney, bricks, 0.85),
        Part("frames", lambda p: opening(p, 0.03, 0.022), plain(frame), 0.7),
        Part("windows", lambda p: opening(p, 0.0, 0.03), glazing, 0.3),
        Part("door frame", lambda p: leaf(p, 0.035, 0.03), plain(frame), 0.7),
        Part("door", lambda p: leaf(p, 0.0, 0.04), planks, 0.7),
    ]
    if porch:
        parts.append(Part("pediment", pediment, plain(frame), 0.7))
    return place("cottage", tuple(parts))


def castle_tower(draw: Draw) -> ProceduralObject:
    """Return a round stone tower with battlements, windows, an arched door and usually a pointed turret."""
    radius, tall = draw.vary(0.30, 0.06), draw.vary(0.82, 0.05)
    crown, lip = draw.uniform(0.08, 0.11), draw.uniform(0.12, 0.15)
    merlons, tooth = draw.integer(7, 8), draw.uniform(0.12, 0.15)
    batter = draw.uniform(0.06, 0.10)
    door, lintel = draw.uniform(0.105, 0.12), draw.vary(0.28, 0.06)
    course, block = draw.uniform(0.085, 0.10), draw.integer(11, 13)
    turret, side, girth = draw.chance(0.7), draw.usually(1.0, (-1.0,)), draw.uniform(0.145, 0.165)
    rim, wall = radius + crown, 0.12
    at = (side * 0.86 * radius, 0.0, -0.55 * radius)
    peak, spire, root = tall + draw.uniform(0.24, 0.27), draw.vary(0.29, 0.1), 0.35 * tall

    def tower(p: Coordinates) -> Distance:
        r, y = revolve(p)
        foot = batter * ramp(y, 0.45, 0.0) ** 2
        shaft = box2(r - foot, y - tall / 2, (radius, tall / 2), 0.02) * 0.93
        low = tall - lip - 0.11
        cornice = [(-0.1, low), (radius, low), (rim, tall - lip), (rim, tall), (-0.1, tall)]
        return union(shaft, polygon(r, y, cornice))

    def battlements(p: Coordinates) -> Distance:
        r, y = revolve(p)
        ring = box2(r - (rim - wall / 2), y - tall, (wall / 2, tooth + 0.03), 0.01)
        x, _, z = sectors(p, merlons)
        gap = torch.maximum(x.abs() - 0.25 * rim, -z)
        solid = torch.maximum(ring, gap)
        if turret:  # avoid gaps at the turret that are narrower than a grid cell
            solid = torch.maximum(solid, girth + 0.08 - norm(p[0] - at[0], p[2] - at[2]))
        return solid

    def side_turret(p: Coordinates) -> Distance:
        r, y = revolve(shift(p, at))
        shaft = box2(r, y - (peak + root) / 2, (girth, (peak - root) / 2), 0.01)
        corbel = polygon(
            r, y, [(-0.1, root - 0.22), (0.03, root - 0.22), (girth, root + 0.02), (-0.1, root + 0.02)]
        )
        return union(shaft, corbel, box2(r, y - peak + 0.03, (girth + 0.025, 0.035), 0.01))

    def spire_roof(p: Coordinates) -> Distance:
        r, y = revolve(shift(p, at))
        return (
            polygon(r, y, [(-0.1, peak), (girth + 0.03, peak), (0.0, peak + spire), (-0.1, peak + spire)])
            - 0.02
        )

    def arch(p: Coordinates, grow: float, out: float) -> Distance:
        leaf = union(
            box2(p[0], p[1] - lintel / 2, (door + grow, lintel / 2)), norm(p[0], p[1] - lintel) - door - grow
        )
        return extrude(leaf, p[2] - radius - 0.5 * batter, 0.03 + out)

    def windows(p: Coordinates, grow: float, out: float) -> Distance:
        """Return the distance to the arched windows: four in the upper part and four in the lower part."""

        def slit(x: Tensor, y: Tensor, z: Tensor, height: float) -> Distance:
            flat = box2(x, y - height, (0.052 + grow, 0.105 + grow), 0.05 + grow)
            return torch.maximum(flat, (z - radius).abs() - out)

        return union(
            slit(*sectors(p, 4), 0.70 * tall),
            slit(*sectors(p, 4, math.pi / 4), 0.44 * tall),
        )

    stone = tint(draw, draw.usually(colour("#9c9a94"), (colour("#c0ae8c"), colour("#7d828a")), 0.65))
    slate = tint(draw, draw.usually(colour("#a8402e"), (colour("#3f5a86"), colour("#4a4d55")), 0.5))
    wood = tint(draw, colour("#6e3f20"))

    def stones(p: Coordinates) -> Tensor:
        """Return the albedo of rows of blocks with dark joints. Each block has a random shade."""
        step = 2 * math.pi / block
        edge, own = blocks(torch.atan2(p[0], p[2]) / step * 0.17, p[1], 0.17, course)
        return masonry(stone, shade(stone, 0.45), edge, own, 0.24)

    def turret_stones(p: Coordinates) -> Tensor:
        x, y, z = shift(p, at)
        edge, own = blocks(torch.atan2(x, z) / (2 * math.pi / 7) * 0.15, y, 0.15, course)
        face = masonry(stone, shade(stone, 0.45), edge, own, 0.24)
        slit = torch.maximum(
            torch.remainder(torch.atan2(x, z) / (math.pi / 2) - 0.5, 1.0).sub(0.5).abs() * 0.24,
            ((y - peak + 0.17).abs() - 0.05),
        )
        return over(face, colour("#26262a"), ramp(slit, 0.032, 0.024))

    def slates(p: Coordinates) -> Tensor:
        x, y, z = shift(p, at)
        edge, own = blocks(torch.atan2(x, z) / (2 * math.pi / 10) * 0.1, y, 0.1, 0.07)
        return masonry(slate, shade(slate, 0.45), edge, own, 0.2)

    def planks(p: Coordinates) -> Tensor:
        gap = (torch.remainder(p[0] / 0.055 + 0.5, 1.0) - 0.5).abs() * 0.055
        iron = torch.minimum((p[1] - 0.3 * lintel).abs(), (p[1] - 0.95 * lintel).abs())
        board = over(plain(wood)(p), shade(wood, 0.5), ramp(gap, 0.010, 0.005))
        return over(board, colour("#2c2c30"), ramp(iron, 0.022, 0.016))

    parts = [
        Part("tower", tower, stones, 0.85),
        Part("battlements", battlements, stones, 0.85),
        Part("window frames", lambda p: windows(p, 0.028, 0.03), plain(shade(stone, 1.3)), 0.85),
        Part("windows", lambda p: windows(p, 0.0, 0.04), plain(colour("#26262a")), 0.8),
        Part("door frame", lambda p: arch(p, 0.045, 0.02), plain(shade(stone, 1.3)), 0.85),
        Part("door", lambda p: arch(p, 0.0, 0.035), planks, 0.7),
    ]
    if turret:
        parts += [
            Part("turret", side_turret, turret_stones, 0.85),
            Part("roof", spire_roof, slates, 0.7),
        ]
    return place("castle_tower", tuple(parts))
