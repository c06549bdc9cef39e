"""Category hamburger.

A hamburger is rotationally symmetric about +y except for the cheese. It has no front, so its azimuth is
random.
"""

import torch
from torch import Tensor

from dataset.procedural.colour import colour, mix, plain, ramp, shade, spots, tint
from dataset.procedural.primitives import (
    Coordinates,
    Distance,
    box,
    cylinder,
    ellipsoid,
    norm,
    smooth_intersection,
    turn_y,
    union,
)
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject, place


def hamburger(draw: Draw) -> ProceduralObject:
    """Return a hamburger. From bottom to top: bun, patty, square cheese, tomato, lettuce, bun with seeds."""
    radius, dome = draw.vary(0.54, 0.05), draw.vary(0.40, 0.1)
    heel, meat = draw.uniform(0.22, 0.27), draw.uniform(0.17, 0.21)
    slice_height, turn = draw.uniform(0.15, 0.18), draw.angle()
    bottom = -0.5 * (heel + meat)
    patty_at = bottom + heel + 0.5 * meat
    cheese_at = patty_at + 0.5 * meat + 0.03
    leaf_at = cheese_at + 0.05 + slice_height
    crown_at = leaf_at - 0.01
    spacing, phase = draw.uniform(0.42, 0.50), draw.angle()

    def lower_bun(p: Coordinates) -> Distance:
        return cylinder(p, (0.0, bottom + 0.5 * heel, 0.0), 0.98 * radius, 0.5 * heel, 0.10)

    def patty(p: Coordinates) -> Distance:
        """Return the distance to the union of the meat and a core that fills the space between the layers."""
        slab = cylinder(p, (0.0, patty_at - 0.01, 0.0), 1.05 * radius, 0.5 * meat + 0.02, 0.06)
        low = bottom + 0.5 * heel
        middle, half = 0.5 * (low + crown_at), 0.5 * (crown_at - low)
        return union(slab, cylinder(p, (0.0, middle, 0.0), 0.95 * radius, half))

    def cheese(p: Coordinates) -> Distance:
        hang = 0.85 * (norm(p[0], p[2]) - 1.09 * radius).clamp(min=0)
        local = turn_y((p[0], p[1] - cheese_at + hang, p[2]), turn)
        return box(local, (0.0, 0.0, 0.0), (0.96 * radius, 0.05, 0.96 * radius), 0.045) * 0.8

    def tomato(p: Coordinates) -> Distance:
        return cylinder(
            p, (0.0, cheese_at + 0.03 + 0.5 * slice_height, 0.0), radius, 0.5 * slice_height, 0.03
        )

    ruffles, ruffle_phase = draw.integer(8, 10), draw.angle()

    def lettuce(p: Coordinates) -> Distance:
        r = norm(p[0], p[2])
        wave = torch.cos(torch.atan2(p[0], p[2]) * ruffles + ruffle_phase) * ramp(r, 0.3 * radius, radius)
        disc = cylinder((p[0], p[1] + 0.045 * wave, p[2]), (0.0, leaf_at, 0.0), 1.13 * radius, 0.065, 0.05)
        return disc * 0.75

    def seed(p: Coordinates) -> Tensor:
        """Return 1 on the seeds of the upper bun and 0 between them."""
        polar = torch.atan2(norm(p[0], p[2]) / radius, ((p[1] - crown_at) / dome).clamp(min=1e-3))
        along, across = spots(torch.atan2(p[0], p[2]), polar, spacing, phase, jitter=0.08)
        inside = ramp(norm(0.75 * along, 1.25 * across), 0.125, 0.07)
        return inside * ramp(p[1] - crown_at, 0.10, 0.2) * ramp(norm(p[0], p[1] - crown_at, p[2]), 0.1, 0.3)

    def upper_bun(p: Coordinates) -> Distance:
        full = ellipsoid(p, (0.0, crown_at, 0.0), (1.05 * radius, dome, 1.05 * radius))
        raised = full - 0.022 * seed(p)
        return smooth_intersection(raised, crown_at - 0.02 - p[1], 0.12) * 0.85

    bread = tint(draw, colour("#cf8434"), 0.1)

    def crust(p: Coordinates) -> Tensor:
        top = mix(shade(bread, 1.35), bread, ramp(p[1], crown_at + 0.02, crown_at + 0.12))
        return top + seed(p)[:, None] * (mix(colour("#f6e7bd"), colour("#f6e7bd"), p[0]) - top)

    bun, meat_roughness = draw.uniform(0.45, 0.6), draw.uniform(0.7, 0.85)
    parts = (
        Part("lower bun", lower_bun, plain(bread), bun),
        Part("patty", patty, plain(tint(draw, colour("#5c3018"))), meat_roughness),
        Part("cheese", cheese, plain(tint(draw, colour("#f5b21c"), 0.06)), 0.45),
        Part("lettuce", lettuce, plain(tint(draw, colour("#62b03a"))), 0.6),
        Part("upper bun", upper_bun, crust, bun),
        Part("tomato", tomato, plain(tint(draw, colour("#cf2a1c"))), 0.35),
    )
    return place("hamburger", parts, draw.angle())
