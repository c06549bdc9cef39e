"""Colours as linear RGB triples, and functions that compute the albedo of a part from them."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dataset.procedural.primitives import Coordinates
from dataset.procedural.random_draw import Draw

Colour = tuple[float, float, float]
# Upper limit of every albedo channel. It is below 1, because shading adds highlights, and the sum must not
# clip.
BRIGHTEST = 0.85


def colour(code: str) -> Colour:
    """Convert an sRGB colour "#rrggbb" to a linear albedo (IEC 61966-2-1), limited to BRIGHTEST."""
    encoded = [int(code[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in encoded]
    return tuple(min(c, BRIGHTEST) for c in linear)


def tint(draw: Draw, base: Colour, share: float = 0.12) -> Colour:
    """Vary a colour randomly: its brightness by up to ±share, and each channel by up to ±share / 4."""
    brightness = draw.vary(1.0, share)
    return tuple(min(draw.vary(c * brightness, share / 4), BRIGHTEST) for c in base)


def shade(base: Colour, factor: float) -> Colour:
    """Return `base` times `factor`, limited to BRIGHTEST."""
    return tuple(min(c * factor, BRIGHTEST) for c in base)


def plain(base: Colour) -> Callable[[Coordinates], Float[Tensor, "N 3"]]:
    """Return an albedo function that gives `base` at every point."""
    return lambda p: torch.stack([torch.full_like(p[0], c) for c in base], -1)


def mix(first: Colour, second: Colour, weight: Float[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    """Interpolate linearly from `first` (weight 0) to `second` (weight 1)."""
    return torch.stack([a + (b - a) * weight for a, b in zip(first, second, strict=True)], -1)


def over(
    base: Float[Tensor, "N 3"], paint: Colour | tuple[Tensor, ...], weight: Float[Tensor, " N"]
) -> Float[Tensor, "N 3"]:
    """Interpolate linearly from `base` (weight 0) to `paint` (weight 1).

    Each channel of `paint` is a number or a tensor [N].
    """
    return torch.stack([base[:, i] + (c - base[:, i]) * weight for i, c in enumerate(paint)], -1)


def grain(base: Colour, depth: float) -> Callable[[Coordinates], Tensor]:
    """Return an albedo function of wood that is cut lengthwise, with annual rings and fine fibres.

    The fibres are parallel to the y-z plane. depth: relative darkening of each ring's late wood, in [0, 1].
    """

    def albedo(p: Coordinates) -> Tensor:
        bend = torch.sin(2.3 * p[1] + 1.9 * p[2] + 1.0) + 0.5 * torch.sin(5.1 * (p[1] - p[2]))
        ring = 0.5 + 0.5 * torch.sin(32 * p[0] + 5.0 * torch.sin(3.1 * p[0]) + 3.4 * bend)
        fibre = 0.5 + 0.5 * torch.sin(97 * p[0] + 3.0 * bend)
        return mix(shade(base, 1 + 0.3 * depth), shade(base, 1 - 1.3 * depth), 0.8 * ring**3 + 0.2 * fibre)

    return albedo


def ramp(value: Tensor, low: float, high: float) -> Tensor:
    """Return a linear ramp, 0 at `low` and 1 at `high`, and constant outside. It falls if `low` > `high`."""
    return ((value - low) / (high - low)).clamp(0, 1)


def smooth_ramp(value: Tensor, low: float, high: float) -> Tensor:
    """Apply 3t² − 2t³ to the result t of `ramp`, so that the slope is continuous."""
    t = ramp(value, low, high)
    return t * t * (3 - 2 * t)


def bell(value: Tensor, width: float) -> Tensor:
    """Return a raised cosine: 1 at 0, and 0 for |value| >= width."""
    return torch.where(value.abs() < width, 0.5 + 0.5 * torch.cos(value * (math.pi / width)), 0.0)


def spots(
    azimuth: Tensor, polar: Tensor, spacing: float, phase: float = 0.0, jitter: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the offset from the nearest spot on a sphere, in radians along the meridian and the parallel.

    The spots are on parallels that are `spacing` apart. The first spot is at the pole (polar = 0). Each
    parallel has as many spots as fit at distances of at least `spacing`, and is rotated by the golden angle
    relative to the previous one. jitter: displacement of the spots along the meridian, in units of `spacing`.
    A pattern is continuous if the radius of its spots is less than (1 − 2·jitter)·spacing / 2.
    """
    row = torch.round(polar / spacing)
    height = (row * spacing).clamp(0, math.pi)
    count = torch.floor(2 * math.pi * height.sin() / spacing).clamp(min=1)
    turned = azimuth - phase - row * 2.39996
    column = torch.round(turned * count / (2 * math.pi))
    across = turned - column * 2 * math.pi / count
    # Using the column modulo the number of spots in the row makes the displacement periodic in azimuth.
    wobble = jitter * spacing * torch.sin(2.1 * row + 4.3 * (column % count))
    along = polar - height - torch.where(row > 0, wobble, torch.zeros_like(wobble))
    return along, across * height.sin()
