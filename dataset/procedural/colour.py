"""Albedos: linear RGB triples, and the functions that paint a part with them."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dataset.procedural.primitives import Coordinates
from dataset.procedural.random_draw import Draw

Colour = tuple[float, float, float]
# Upper limit of every albedo channel: highlights are added to it and must not clip.
BRIGHTEST = 0.85


def colour(code: str) -> Colour:
    """Linear albedo of an sRGB colour written "#rrggbb" (IEC 61966-2-1), limited to BRIGHTEST."""
    encoded = [int(code[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in encoded]
    return tuple(min(c, BRIGHTEST) for c in linear)


def tint(draw: Draw, base: Colour, share: float = 0.12) -> Colour:
    """The colour with its brightness varied by up to `share`, and each channel by a quarter of that."""
    brightness = draw.vary(1.0, share)
    return tuple(min(draw.vary(c * brightness, share / 4), BRIGHTEST) for c in base)


def shade(base: Colour, factor: float) -> Colour:
    """`base` times `factor`, limited to BRIGHTEST."""
    return tuple(min(c * factor, BRIGHTEST) for c in base)


def plain(base: Colour) -> Callable[[Coordinates], Float[Tensor, "N 3"]]:
    """An albedo function that returns `base` at every point."""
    return lambda p: torch.stack([torch.full_like(p[0], c) for c in base], -1)


def mix(first: Colour, second: Colour, weight: Float[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    """`first` where weight is 0, `second` where it is 1."""
    return torch.stack([a + (b - a) * weight for a, b in zip(first, second, strict=True)], -1)


def over(
    base: Float[Tensor, "N 3"], paint: Colour | tuple[Tensor, ...], weight: Float[Tensor, " N"]
) -> Float[Tensor, "N 3"]:
    """`base` where weight is 0, `paint` where it is 1. A channel of `paint` is a number or a tensor [N]."""
    return torch.stack([base[:, i] + (c - base[:, i]) * weight for i, c in enumerate(paint)], -1)


def grain(base: Colour, depth: float) -> Callable[[Coordinates], Tensor]:
    """Wood whose fibres run in the plane of y and z: annual rings cut lengthwise, and fine fibres.

    depth in [0, 1] is the share by which the dark late wood of each ring is darker than `base`.
    """

    def albedo(p: Coordinates) -> Tensor:
        bend = torch.sin(2.3 * p[1] + 1.9 * p[2] + 1.0) + 0.5 * torch.sin(5.1 * (p[1] - p[2]))
        ring = 0.5 + 0.5 * torch.sin(32 * p[0] + 5.0 * torch.sin(3.1 * p[0]) + 3.4 * bend)
        fibre = 0.5 + 0.5 * torch.sin(97 * p[0] + 3.0 * bend)
        return mix(shade(base, 1 + 0.3 * depth), shade(base, 1 - 1.3 * depth), 0.8 * ring**3 + 0.2 * fibre)

    return albedo


def ramp(value: Tensor, low: float, high: float) -> Tensor:
    """0 below `low`, 1 above `high` (either order), linear in between."""
    return ((value - low) / (high - low)).clamp(0, 1)


def smooth_ramp(value: Tensor, low: float, high: float) -> Tensor:
    """`ramp` with a continuous slope: 3t² − 2t³."""
    t = ramp(value, low, high)
    return t * t * (3 - 2 * t)


def bell(value: Tensor, width: float) -> Tensor:
    """Raised cosine: 1 at 0, 0 for |value| >= width."""
    return torch.where(value.abs() < width, 0.5 + 0.5 * torch.cos(value * (math.pi / width)), 0.0)


def spots(
    azimuth: Tensor, polar: Tensor, spacing: float, phase: float = 0.0, jitter: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Offset (along the meridian, along the parallel; radians) to the nearest of the spots on a sphere.

    The spots lie on parallels that are `spacing` apart. The first is at the pole polar = 0. Each parallel has
    the largest number of spots with distances of at least `spacing`, and is rotated by the golden angle
    relative to the previous one. jitter moves them along the meridian, in units of spacing. Continuous where
    no spot reaches its cell's border, at (1 − 2·jitter)·spacing / 2.
    """
    row = torch.round(polar / spacing)
    height = (row * spacing).clamp(0, math.pi)
    count = torch.floor(2 * math.pi * height.sin() / spacing).clamp(min=1)
    turned = azimuth - phase - row * 2.39996
    column = torch.round(turned * count / (2 * math.pi))
    across = turned - column * 2 * math.pi / count
    # The displacement depends on (row, column) only; columns count modulo the number of spots in the row.
    wobble = jitter * spacing * torch.sin(2.1 * row + 4.3 * (column % count))
    along = polar - height - torch.where(row > 0, wobble, torch.zeros_like(wobble))
    return along, across * height.sin()
