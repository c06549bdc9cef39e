"""A table of the texels of a mesh's given textures and paint mask, for lookups.

The given textures and the given material are those of the mesh file.

A texel has ten bytes: base colour in sRGB (3); occlusion, roughness and metallic (3), where occlusion 0 means
unoccluded as in `render.shade.brdf`; the tangent-space normal as n · 0.5 + 0.5 (3); and the mask (1). A mask
of 255 means that the texel is painted. A mask of 0 means that the given texel is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from render.image_io.image import encode_normal
from render.mesh_io.surface_material import SurfaceMaterial
from render.shade.brdf import linear_to_srgb, srgb_to_linear
from render.shade.normals import safe_normalize

# The maximum side of a picture in the table. Larger pictures are reduced. This does not limit the size of
# exported textures.
LARGEST_SIDE = 4096
WRAPS = ("repeat", "clamp", "mirror")
KD, KS, NORMAL, MASK = slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)


@dataclass(frozen=True)
class GivenTexels:
    """The given material at N points: linear kd, ks, unit tangent-space normal, and the mask in [0, 1]."""

    kd: Float[Tensor, "N 3"]
    ks: Float[Tensor, "N 3"]
    normal: Float[Tensor, "N 3"]
    mask: Float[Tensor, "N 1"]


@dataclass(frozen=True)
class PaintMask:
    """The painted region of a mesh. It is a grey picture over the uv of every material, or a set of
    materials.

    picture: 255 means painted, 0 means that the given textures are kept. materials: the names of materials
    that are painted entirely.
    """

    picture: UInt8[np.ndarray, "H W"] | None = None
    materials: frozenset[str] = frozenset()

    def of(self, material: SurfaceMaterial) -> UInt8[Tensor, "H W"]:
        """Return the mask of a material. Without a picture, the mask is constant, and its size is 1 × 1."""
        if self.picture is not None:
            return torch.from_numpy(self.picture)
        return torch.full((1, 1), 255 * (material.name in self.materials), dtype=torch.uint8)


def mask_at(mask: PaintMask | None, material: SurfaceMaterial, size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """Return the mask of a material at a texture size. If `mask` is None, the result is 255 everywhere."""
    if mask is None:
        return torch.full(size, 255, dtype=torch.uint8)
    picture = mask.of(material)
    if tuple(picture.shape) == size:
        return picture
    return to_byte(resample(picture[..., None].float() / 255, size))[..., 0]


def given_texture(material: SurfaceMaterial, size: tuple[int, int]) -> UInt8[Tensor, "H W 9"]:
    """Return base colour, ks and normal of a material at a texture size. The factors of the material are
    applied.

    A picture of this size whose factor is 1 is returned unchanged. Other pictures are resampled and rounded.
    """
    return torch.cat([_kd(material, size), _ks(material, size), _normal(material, size)], -1)


def _kd(material: SurfaceMaterial, size: tuple[int, int]) -> UInt8[Tensor, "H W 3"]:
    factor = torch.tensor(material.kd_factor[:3])
    if material.kd is None:
        return to_byte(linear_to_srgb(factor)).expand(*size, 3)
    given = torch.from_numpy(material.kd[..., :3])
    if tuple(given.shape[:2]) == size and bool((factor == 1).all()):
        return given
    linear = resample(srgb_to_linear(given.float() / 255), size) * factor
    return to_byte(linear_to_srgb(linear))


def _ks(material: SurfaceMaterial, size: tuple[int, int]) -> UInt8[Tensor, "H W 3"]:
    occlusion = torch.zeros(*size, 1, dtype=torch.uint8)
    if material.occlusion is not None:
        dark = torch.from_numpy(255 - material.occlusion)
        occlusion = _scaled(dark, size, torch.tensor([material.occlusion_strength]))
    factors = torch.tensor([material.roughness, material.metallic])
    if material.roughness_metallic is None:
        return torch.cat([occlusion, to_byte(factors).expand(*size, 2)], -1)
    return torch.cat([occlusion, _scaled(torch.from_numpy(material.roughness_metallic), size, factors)], -1)


def _normal(material: SurfaceMaterial, size: tuple[int, int]) -> UInt8[Tensor, "H W 3"]:
    if material.normal is None:
        return torch.tensor([128, 128, 255], dtype=torch.uint8).expand(*size, 3)
    given = torch.from_numpy(material.normal)
    if tuple(given.shape[:2]) == size and material.normal_scale == 1:
        return given
    scale = torch.tensor([material.normal_scale, material.normal_scale, 1.0])
    return to_byte(encode_normal(safe_normalize(resample(given.float() / 127.5 - 1, size) * scale)))


def _scaled(
    given: UInt8[Tensor, "H W C"], size: tuple[int, int], factor: Float[Tensor, " C"]
) -> UInt8[Tensor, "H2 W2 C"]:
    if tuple(given.shape[:2]) == size and bool((factor == 1).all()):
        return given
    return to_byte(resample(given.float() / 255, size) * factor)


def to_byte(values: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Round values in [0, 1] to 0 … 255, as `render.image_io.image.to_bytes` does."""
    return (values.detach().clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def resample(picture: Float[Tensor, "H W C"], size: tuple[int, int]) -> Float[Tensor, "H2 W2 C"]:
    """Resample a picture bilinearly to another size. If the picture is reduced, the filter is wider, which
    avoids aliasing.
    """
    if tuple(picture.shape[:2]) == size:
        return picture
    resized = F.interpolate(picture.permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0)


class TexelTable(nn.Module):
    """All given textures and masks of a mesh in one buffer of texels. Lookups are bilinear.

    The buffers are not part of checkpoints, because a resumed run reads the files again.
    """

    def __init__(self, materials: Sequence[SurfaceMaterial], mask: PaintMask | None):
        super().__init__()
        sizes = [_table_size(material, mask) for material in materials]
        pictures = [
            torch.cat([given_texture(m, size), mask_at(mask, m, size)[..., None]], -1).reshape(-1, 10)
            for m, size in zip(materials, sizes, strict=True)
        ]
        starts = np.cumsum([0, *(len(picture) for picture in pictures)])[:-1]
        wraps = [[WRAPS.index(side) for side in material.wrap] for material in materials]
        buffers: Mapping[str, Tensor] = {
            "texels": torch.cat(pictures),
            "starts": torch.from_numpy(starts.astype(np.int64)),
            "sizes": torch.tensor([[width, height] for height, width in sizes]),
            "wraps": torch.tensor(wraps),
            "flat": torch.tensor([material.normal is None for material in materials]),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values, persistent=False)

    def forward(self, material: Int[Tensor, " N"], uv: Float[Tensor, "N 2"]) -> GivenTexels:
        """Return the texels at uv in the textures of each point's material. uv may be outside of [0, 1]."""
        sizes, wraps = self.sizes[material], self.wraps[material]
        position = uv * sizes - 0.5
        corner = position.floor()
        weight = position - corner
        near, far = (wrapped(corner.long() + step, sizes, wraps) for step in (0, 1))
        start, width = self.starts[material], sizes[:, 0]
        total = uv.new_zeros(len(uv), 10)
        for column, across in ((near[:, :1], 1 - weight[:, :1]), (far[:, :1], weight[:, :1])):
            for row, down in ((near[:, 1:], 1 - weight[:, 1:]), (far[:, 1:], weight[:, 1:])):
                values = self.texels[start + row[:, 0] * width + column[:, 0]].to(uv.dtype) / 255
                values = torch.cat([srgb_to_linear(values[:, KD]), values[:, 3:]], -1)
                total = total + across * down * values
        normal = safe_normalize(total[:, NORMAL] * 2 - 1)
        # The normal of a material without a normal map is set to exactly (0, 0, 1), because the byte 128 is
        # not decoded to exactly 0.
        normal = torch.where(self.flat[material, None], normal.new_tensor([0.0, 0.0, 1.0]), normal)
        return GivenTexels(total[:, KD], total[:, KS], normal, total[:, MASK])


def wrapped(
    index: Int[Tensor, "N 2"], sizes: Int[Tensor, "N 2"], wraps: Int[Tensor, "N 2"]
) -> Int[Tensor, "N 2"]:
    """Return texel indices inside the image, according to the wrap modes.

    wraps: the index in WRAPS for each point and axis.
    """
    repeated = index.remainder(sizes)
    twice = index.remainder(2 * sizes)
    mirrored = torch.minimum(twice, 2 * sizes - 1 - twice)
    clamped = torch.minimum(index.clamp(min=0), sizes - 1)
    return torch.where(wraps == 0, repeated, torch.where(wraps == 1, clamped, mirrored))


def _table_size(material: SurfaceMaterial, mask: PaintMask | None) -> tuple[int, int]:
    """Return the largest height and the largest width of a material's pictures and mask, each at most
    LARGEST_SIDE.
    """
    sizes = [material.size] + ([] if mask is None else [tuple(mask.of(material).shape)])
    return tuple(min(max(size[axis] for size in sizes), LARGEST_SIDE) for axis in (0, 1))
