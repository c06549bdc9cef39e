"""Split-sum image-based shading of a metallic-roughness surface, and the sRGB transfer function.

The BRDF is GGX (alpha = roughness²) with the height-correlated Smith masking-shadowing term and Schlick's
Fresnel. Sources: B. Karis, "Real Shading in Unreal Engine 4", SIGGRAPH 2013; E. Heitz, "Understanding the
Masking-Shadowing Function in Microfacet-Based BRDFs", JCGT 2014; J. Dupuy and A. Benyoub, "Sampling Visible
GGX Normals with Spherical Caps", HPG 2023 (the quadrature points).
"""

import math
from functools import cache, lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from render.shade.prefilter import PrefilteredLight

DIELECTRIC_REFLECTANCE = 0.04
HEIGHT_NODES, ANGLE_NODES = 32, 12


# Number of rows of the table that are computed at once on a GPU, where the time depends on the number of
# kernels. On the CPU, the intermediate values of a single row fit into the cache.
GPU_ROWS = 32


@lru_cache(maxsize=4)
def split_sum_table(size: int = 256, device: torch.device | str = "cpu") -> Float[Tensor, "R R 2"]:
    """Return (scale, bias) with ∫ brdf · cos θ = F0 · scale + bias for a light that is 1 everywhere.

    Row i is for the roughness (i + 0.5) / size. Column j is for n·v = (j + 0.5) / size.
    """
    centres = (torch.arange(size, dtype=torch.float32, device=device) + 0.5) / size
    if centres.device.type == "cpu":
        return torch.stack([_integrate_row(float(roughness), centres) for roughness in centres])
    return torch.cat([_integrate_rows(some, centres) for some in centres.split(GPU_ROWS)])


@lru_cache(maxsize=4)
def _table_on(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "R R 2"]:
    return split_sum_table(device=device).to(dtype)


def _integrate_row(roughness: float, cosine: Float[Tensor, " V"]) -> Float[Tensor, "V 2"]:
    """Return the row of the table for one roughness."""
    share = _quadrature()[2]
    return torch.stack([share @ part for part in _integrand(roughness * roughness, cosine)], -1)


def _integrate_rows(roughness: Float[Tensor, " R"], cosine: Float[Tensor, " V"]) -> Float[Tensor, "R V 2"]:
    """Return rows of the table. A matrix product is not used, because a GPU would round it to TF32."""
    share = _quadrature()[2].to(cosine.device)[:, None]
    parts = _integrand(roughness.square()[:, None, None], cosine)
    return torch.stack([(share * part).sum(1) for part in parts], -1)


@cache
def _quadrature() -> tuple[Float[Tensor, "P 1"], Float[Tensor, "P 1"], Float[Tensor, " P"]]:
    """Return the points of the quadrature over a spherical cap: height in [0, 1], angle in [0, π], weight."""
    # Gauss-Legendre points are used because they are denser near the ends of the interval, where they resolve
    # the long tail of GGX.
    nodes, shares = (torch.from_numpy(part).float() for part in np.polynomial.legendre.leggauss(HEIGHT_NODES))
    # Angles up to π are sufficient, because the integrand is symmetric about the plane of n and v.
    angles = (torch.arange(ANGLE_NODES) + 0.5) * (math.pi / ANGLE_NODES)
    height = (nodes * 0.5 + 0.5).repeat_interleave(ANGLE_NODES)[:, None]
    share = (shares * (0.5 / ANGLE_NODES)).repeat_interleave(ANGLE_NODES)
    return height, angles.repeat(HEIGHT_NODES)[:, None], share


def _integrand(alpha: float | Tensor, cosine: Float[Tensor, " V"]) -> tuple[Tensor, Tensor]:
    """Return the integrands of (scale, bias) at the points of the quadrature over visible half vectors.

    alpha: roughness², a number or a tensor of shape [R, 1, 1]. The results have the shape [P, V] or
    [R, P, V].
    """
    height, angle = (part.to(cosine.device) for part in _quadrature()[:2])
    view_x, view_z = (1 - cosine.square()).sqrt(), cosine
    stretch = (alpha * alpha * view_x.square() + view_z.square()).sqrt()
    std_x, std_z = alpha * view_x / stretch, view_z / stretch
    cap_z = (1 - height) * (1 + std_z) - std_z
    cap_r = (1 - cap_z.square()).clamp_min(0).sqrt()
    half_x = alpha * (cap_r * angle.cos() + std_x)
    half_y = alpha * (cap_r * angle.sin())
    half_z = cap_z + std_z
    inverse = torch.rsqrt(half_x.square() + half_y.square() + half_z.square())
    half_x, half_z = half_x * inverse, half_z * inverse
    view_half = (view_x * half_x + view_z * half_z).clamp(0, 1)
    light_z = 2 * view_half * half_z - view_z
    # The samples have the density G1(v) max(v·h, 0) D(h) / n·v, so the weight of a sample is G2 / G1.
    visible = 1 + _smith_lambda(alpha, view_z)
    masked = visible / (visible + _smith_lambda(alpha, light_z.clamp_min(1e-6)))
    masked = torch.where(light_z > 0, masked, 0.0)
    fresnel = (1 - view_half) ** 5
    return masked * (1 - fresnel), masked * fresnel


def _smith_lambda(alpha: float | Tensor, cosine: Tensor) -> Tensor:
    return 0.5 * ((1 + alpha * alpha * (1 / cosine.square() - 1)).sqrt() - 1)


def lookup_split_sum(
    table: Float[Tensor, "R R 2"], cosine: Float[Tensor, "N 1"], roughness: Float[Tensor, "N 1"]
) -> Float[Tensor, "N 2"]:
    """Return (scale, bias) by bilinear interpolation in the table, clamped at the outer texel centres.

    The result is differentiable with respect to cosine and roughness.
    """
    grid = (torch.cat([cosine, roughness], -1) * 2 - 1)[None, :, None]
    image = table.permute(2, 0, 1)[None]
    found = torch.nn.functional.grid_sample(
        image, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[0, :, :, 0].T


def shade(
    kd: Float[Tensor, "N 3"],
    ks: Float[Tensor, "N 3"],
    normal: Float[Tensor, "N 3"],
    view: Float[Tensor, "N 3"],
    light: PrefilteredLight,
    table: Float[Tensor, "R R 2"] | None = None,
) -> Float[Tensor, "N 3"]:
    """Return the linear RGB radiance towards the viewer (split-sum approximation, Karis 2013).

    kd: linear albedo. ks: (occlusion, roughness, metallic), each in [0, 1]; occlusion 0 means unoccluded.
    normal: unit normal. view: unit vector from the surface to the viewer. table: a result of
    `split_sum_table`; None selects the default table. The light must be given in the coordinate system of
    normal and view. For a light that moves with the camera, rotate normal and view to camera axes
    (light.camera_rotation).
    """
    if table is None:
        table = _table_on(kd.device, kd.dtype)
    occlusion, roughness, metallic = ks.split(1, dim=-1)
    towards = (normal * view).sum(-1, keepdim=True)
    mirrored = 2 * towards * normal - view
    scale, bias = lookup_split_sum(table, towards.clamp(1e-4, 1), roughness).split(1, dim=-1)
    metal = kd * metallic
    specular_colour = metal + DIELECTRIC_REFLECTANCE * (1 - metallic)
    diffuse, specular = light.both(normal, mirrored, roughness)
    reflected = torch.addcmul(bias, specular_colour, scale)
    return torch.addcmul((kd - metal) * diffuse, specular, reflected) * (1 - occlusion)


def linear_to_srgb(linear: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Encode linear colours as sRGB (IEC 61966-2-1).

    Values below 0 are encoded with the linear segment. Values above 1 are not clamped.
    """
    curved = 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, linear * 12.92, curved)


def srgb_to_linear(encoded: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Decode sRGB to linear colours. This is the inverse of `linear_to_srgb` for values that are not
    negative.
    """
    curved = ((encoded.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(encoded <= 0.04045, encoded / 12.92, curved)
