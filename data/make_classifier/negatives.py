"""Surfaces that belong to no category. The classifier must assign them to NOTHING.

The surfaces are similar to the results of two failures of the optimisation: noise, and unchanged start shapes
(ellipsoids and cylinders).
"""

import math

import torch

from dataset.procedural.colour import BRIGHTEST
from dataset.procedural.primitives import Coordinates, Distance, norm
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject
from training.evaluation.classifier import NOTHING

NOISE_SHARE, WAVES = 0.6, 20


def make_negative(generator: torch.Generator) -> ProceduralObject:
    """Return an ellipsoid or cylinder of random radii and colours, with strong noise or almost none."""
    draw = Draw(generator)
    radii = [draw.uniform(0.35, 0.75) for _ in range(3)]
    noisy, round_ = draw.chance(NOISE_SHARE), draw.chance(0.6)
    wave = _wave(draw, draw.uniform(math.log(5.0), math.log(60.0)))
    height = draw.uniform(0.1, 0.6) if noisy else draw.uniform(0.0, 0.03)
    blotches = [(_wave(draw, draw.uniform(1.0, 3.0)), draw.uniform(0.1, 0.7)) for _ in range(3)]
    contrast = draw.uniform(0.0, 0.5)

    def distance(p: Coordinates) -> Distance:
        x, y, z = (c / r for c, r in zip(p, radii, strict=True))
        across = norm(x, y, z) if round_ else torch.maximum(norm(x, z), y.abs())
        return (across - 1.0) * min(radii) + height * wave(p)

    def albedo(p: Coordinates) -> torch.Tensor:
        channels = [level * (1 + contrast * blotch(p)) for blotch, level in blotches]
        return torch.stack(channels, -1).clamp(0, BRIGHTEST)

    return ProceduralObject(NOTHING, (Part(NOTHING, distance, albedo, draw.uniform(0.3, 0.9)),))


def _wave(draw: Draw, log_frequency: float):
    """Return a random function of position with standard deviation 1: a sum of waves in random directions."""
    waves = []
    for _ in range(WAVES):
        up, turn = draw.uniform(-1.0, 1.0), draw.angle()
        flat, length = math.sqrt(1 - up * up), draw.vary(math.exp(log_frequency), 0.3)
        direction = (flat * math.cos(turn), up, flat * math.sin(turn))
        waves.append((tuple(length * c for c in direction), draw.angle()))

    def value(p: Coordinates) -> Distance:
        total = torch.zeros_like(p[0])
        for (x, y, z), phase in waves:
            total = total + torch.sin(x * p[0] + y * p[1] + z * p[2] + phase)
        return total * math.sqrt(2 / WAVES)

    return value
