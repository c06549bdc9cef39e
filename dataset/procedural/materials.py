"""Materials that replace an object's original colours: "a red mug", "a golden chair".

The new albedo of a part is the material's colour times a factor (the tone) that depends on the luminance of
the part's original albedo. So dark parts stay darker than bright parts. Roughness and metallic are those of
the material.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from dataset.procedural.colour import BRIGHTEST, Colour, colour, tint
from dataset.procedural.primitives import Coordinates
from dataset.procedural.random_draw import Draw
from dataset.procedural.solid import Part, ProceduralObject

# The tone of a part ranges from LOWEST_TONE for black to 1 for white.
LOWEST_TONE = 0.42
LUMINANCE = (0.2126, 0.7152, 0.0722)  # Rec. 709, linear


@dataclass(frozen=True)
class Material:
    """Colour and surface properties of an object, and the words that describe them in a caption.

    adjective: word before the object's name ("wooden"). substance: words after the name ("made of wood") or
    None. grain: function from coordinates in the object's frame and a random phase to a factor that
    multiplies the colour.
    """

    adjective: str
    base: Colour
    roughness: tuple[float, float] = (0.4, 0.6)
    metallic: float = 0.0
    substance: str | None = None
    grain: Callable[[Coordinates, float], Tensor] | None = None


def _wood_grain(p: Coordinates, phase: float) -> Tensor:
    """Return the colour factor of wood: annual rings of a trunk along +y, as they appear in a lengthwise cut.

    The late wood of each ring is narrow and dark, and the early wood is wide and bright.
    """
    bend = 0.10 * torch.sin(3.1 * p[1] + phase) + 0.05 * torch.sin(5.3 * p[2] + 7.0 * p[1] + 2.0 * phase)
    ring = 0.5 + 0.5 * torch.sin(24.0 * (p[0] + 0.6 * p[2] + bend) + 3.0 * torch.sin(4.0 * p[0]) + phase)
    fibre = torch.sin(83.0 * (p[0] - 0.7 * p[2] + 0.3 * bend))
    return 1.08 - 0.55 * ring**3 + 0.06 * fibre


def _stone_grain(p: Coordinates, phase: float) -> Tensor:
    """Return the colour factor of stone: isotropic spots of two sizes."""
    coarse = torch.sin(9.0 * p[0] + phase) * torch.sin(8.0 * p[1] + 2.0) * torch.sin(10.0 * p[2] - phase)
    fine = torch.sin(23.0 * p[0] + 1.0) * torch.sin(21.0 * p[1] + phase) * torch.sin(25.0 * p[2] + 3.0)
    return 0.92 + 0.28 * coarse + 0.22 * fine


_PAINTS = {
    "red": "#d01f1a",
    "orange": "#ee7a14",
    "yellow": "#f2d21f",
    "green": "#2f9e3c",
    "blue": "#2257c9",
    "purple": "#7a35b0",
    "pink": "#f08ab5",
    "brown": "#7c4a26",
    "black": "#2e2e31",
    "white": "#f1f1ee",
}
MATERIALS: dict[str, Material] = {
    **{name: Material(name, colour(code)) for name, code in _PAINTS.items()},
    "golden": Material("golden", (0.85, 0.56, 0.16), (0.3, 0.42), 1.0, "gold"),
    "silver": Material("silver", (0.68, 0.69, 0.71), (0.3, 0.42), 1.0, "silver"),
    "wooden": Material("wooden", colour("#b07a42"), (0.6, 0.75), 0.0, "wood", _wood_grain),
    "stone": Material("stone", colour("#9a978f"), (0.8, 0.9), 0.0, "stone", _stone_grain),
}

# Pairs (category, material) that are excluded from the training data. They are used to test whether the prior
# can combine a known category with a known material.
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("pineapple", "blue"),
        ("mug", "golden"),
        ("chair", "stone"),
        ("car", "wooden"),
        ("teapot", "pink"),
        ("apple", "purple"),
        ("snowman", "green"),
        ("mushroom", "silver"),
        ("rocket", "orange"),
        ("cactus", "white"),
        ("vase", "black"),
        ("hammer", "red"),
        ("boat", "yellow"),
        ("bird", "golden"),
        ("cottage", "blue"),
        ("donut", "wooden"),
    }
)


def dressed(subject: ProceduralObject, name: str, draw: Draw) -> ProceduralObject:
    """Return the object with the material MATERIALS[name]. The shade and the roughness are random.

    Raises:
        ValueError: if the name is not in MATERIALS.
    """
    if name not in MATERIALS:
        raise ValueError(f"unknown material {name!r}; known: {', '.join(MATERIALS)}")
    material = MATERIALS[name]
    base, roughness, phase = tint(draw, material.base, 0.1), draw.uniform(*material.roughness), draw.angle()
    parts = tuple(
        Part(
            part.name,
            part.distance,
            _repainted(part.albedo, base, material.grain, phase),
            roughness,
            material.metallic,
        )
        for part in subject.parts
    )
    return replace(subject, parts=parts)


def _repainted(
    own: Callable[[Coordinates], Float[Tensor, "N 3"]],
    base: Colour,
    grain: Callable[[Coordinates, float], Tensor] | None,
    phase: float,
) -> Callable[[Coordinates], Float[Tensor, "N 3"]]:
    def albedo(p: Coordinates) -> Float[Tensor, "N 3"]:
        painted = own(p)
        luminance = sum(painted[:, channel] * share for channel, share in enumerate(LUMINANCE))
        tone = LOWEST_TONE + (1 - LOWEST_TONE) * (luminance / BRIGHTEST).clamp(0, 1).sqrt()
        if grain is not None:
            tone = tone * grain(p, phase)
        return (tone[:, None] * tone.new_tensor(base)).clamp(0, BRIGHTEST)

    return albedo
