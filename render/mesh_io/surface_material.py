"""A material of a mesh file.

A material has pictures and factors for base colour, roughness, metallic, occlusion and normal. The values are
defined as in glTF 2.0 (Khronos Group, 2021). A picture is multiplied by its factor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import UInt8

Wrap = Literal["repeat", "clamp", "mirror"]
White = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class SurfaceMaterial:
    """A material with its pictures, factors and settings.

    Pictures are bytes with row 0 at the top. If a picture is None, only the factor is used.

    kd: base colour in sRGB, with alpha as the fourth channel if the file has it. kd_factor: linear RGB and
    alpha. roughness_metallic: picture with two channels. roughness, metallic: the factors of the two
    channels. occlusion: picture in which 255 means unoccluded. occlusion_strength: 0 to 1. normal:
    tangent-space normals as n · 0.5 + 0.5; green points up in the image. normal_scale: factor on x and y of
    the normals. wrap: the wrap modes along u and v. settings: properties of a glTF material that are written
    unchanged (alphaMode, alphaCutoff, doubleSided, emissiveFactor).
    """

    name: str
    kd: UInt8[np.ndarray, "H W C"] | None = None
    kd_factor: tuple[float, float, float, float] = White
    roughness_metallic: UInt8[np.ndarray, "H W 2"] | None = None
    roughness: float = 1.0
    metallic: float = 0.0
    occlusion: UInt8[np.ndarray, "H W 1"] | None = None
    occlusion_strength: float = 1.0
    normal: UInt8[np.ndarray, "H W 3"] | None = None
    normal_scale: float = 1.0
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")
    settings: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def size(self) -> tuple[int, int]:
        """Return the height and width of the largest picture, or (1, 1) if there are no pictures."""
        sizes = [picture.shape[:2] for picture in self.pictures]
        return max(sizes, key=lambda size: size[0] * size[1], default=(1, 1))

    @property
    def pictures(self) -> list[UInt8[np.ndarray, "H W C"]]:
        """Return all pictures of the material."""
        all_four = (self.kd, self.roughness_metallic, self.occlusion, self.normal)
        return [picture for picture in all_four if picture is not None]

    @property
    def is_default(self) -> bool:
        """Return whether the material has the same appearance as `DEFAULT_MATERIAL`."""
        factors = (self.kd_factor, self.roughness, self.metallic)
        default = (DEFAULT_MATERIAL.kd_factor, DEFAULT_MATERIAL.roughness, DEFAULT_MATERIAL.metallic)
        return not self.pictures and factors == default


# The material of faces without a material. It is similar to the default of glTF, but it is not metallic.
DEFAULT_MATERIAL = SurfaceMaterial("default", kd_factor=(0.5, 0.5, 0.5, 1.0), roughness=0.9)
