"""Compare lookups of given textures with a slow loop over texels."""

import math

import numpy as np
import pytest
import torch

from render.mesh_io.surface_material import SurfaceMaterial
from render.shade.brdf import srgb_to_linear
from render.texturing.given import PaintMask, TexelTable, given_texture


def wrapped_index(index: int, size: int, wrap: str) -> int:
    """Return the index of the texel that a viewer reads if `index` is outside the image."""
    if wrap == "clamp":
        return min(max(index, 0), size - 1)
    tile, inside = divmod(index, size)
    return size - 1 - inside if wrap == "mirror" and tile % 2 else inside


def slow_lookup(picture: np.ndarray, u: float, v: float, wrap: tuple[str, str]) -> torch.Tensor:
    """Return the bilinear lookup of the linear colours at (u, v), computed with a loop over the texels."""
    height, width = picture.shape[:2]
    linear = srgb_to_linear(torch.from_numpy(picture).double() / 255)
    x, y = u * width - 0.5, v * height - 0.5
    total = torch.zeros(3, dtype=torch.float64)
    for column in (math.floor(x), math.floor(x) + 1):
        for row in (math.floor(y), math.floor(y) + 1):
            weight = (1 - abs(x - column)) * (1 - abs(y - row))
            texel = linear[wrapped_index(row, height, wrap[1]), wrapped_index(column, width, wrap[0])]
            total += weight * texel
    return total


@pytest.mark.parametrize("wrap", [("repeat", "clamp"), ("mirror", "repeat"), ("clamp", "mirror")])
def test_a_lookup_outside_of_the_image_follows_the_wrap_mode(wrap):
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (5, 7, 3), generator=generator, dtype=torch.uint8).numpy()
    table = TexelTable([SurfaceMaterial("a"), SurfaceMaterial("b", kd=picture, wrap=wrap)], None)
    uv = torch.rand(40, 2, generator=generator) * 6 - 3
    found = table(torch.ones(40, dtype=torch.long), uv)
    expected = torch.stack([slow_lookup(picture, *place, wrap) for place in uv.tolist()])
    assert torch.allclose(found.kd.double(), expected, atol=1e-5)
    # Without a normal map, the normal is exactly flat. Without a mask, everything is painted.
    assert torch.equal(found.normal, torch.tensor([0.0, 0.0, 1.0]).expand(40, 3))
    assert torch.allclose(found.mask, torch.ones(40, 1))


def test_factors_multiply_linear_colours_and_whole_pictures_are_unchanged():
    picture = np.full((2, 2, 3), 188, np.uint8)
    packed = np.full((2, 2, 2), 200, np.uint8)
    plain = SurfaceMaterial("a", kd=picture, roughness_metallic=packed, metallic=1.0)
    assert (given_texture(plain, (2, 2))[..., :3].numpy() == picture).all()
    assert (given_texture(plain, (2, 2))[..., 4:6].numpy() == packed).all()
    half = SurfaceMaterial(
        "a", kd=picture, kd_factor=(0.5, 1, 1, 1), roughness_metallic=packed, roughness=0.5
    )
    made = given_texture(half, (2, 2))
    # sRGB 188 is 0.503 in linear values. Half of this linear value is sRGB 137.
    assert made[0, 0, :3].tolist() == [137, 188, 188] and made[0, 0, 4:6].tolist() == [100, 0]


def test_a_mask_of_names_paints_whole_materials():
    mask = PaintMask(materials=frozenset({"b"}))
    assert [int(mask.of(SurfaceMaterial(name))) for name in "ab"] == [0, 255]
