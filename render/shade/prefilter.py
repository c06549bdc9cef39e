"""Prefiltering. The environment light is convolved with the diffuse and specular lobes and stored as cube
maps.

The diffuse value is irradiance / π, the mean of the light under a cosine lobe. The specular value is the mean
of the light under the GGX lobe at normal incidence (n = v = r), weighted by n·l. It is the first sum of the
split-sum approximation (B. Karis, "Real Shading in Unreal Engine 4", SIGGRAPH 2013 course notes). alpha =
roughness².

Each lobe is sampled at a fixed set of directions on a spiral. All directions have the same probability. Each
sample is read from the mip of the light whose texels have about the solid angle of the sample (M. Colbert and
J. Krivanek, "GPU-based importance sampling", GPU Gems 3). This avoids noise although there are few samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.kernels.available import numba_module
from render.shade.cubemap import bordered, face_coordinates, halve, sample_bordered, texel_directions

# A bordered cube, its size, lookup directions in the frame of a texel, and the weight of each direction.
LookupGroup = tuple[Tensor, int, Tensor, Tensor]
SMALLEST_MIP = 16
LOWEST_ROUGHNESS, MIDDLE_ROUGHNESS = 0.08, 0.5
# The maximum number of points that are looked up at once. On the CPU, intermediate values fit into the
# processor cache. On a GPU, fewer and larger kernels are faster.
CHUNK, GPU_CHUNK = 2**15, 2**20
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


@dataclass(frozen=True)
class Lobe:
    """S directions around +z, their weights (the sum is 1), and the solid angle of each direction in
    steradian.
    """

    direction: Float[Tensor, "S 3"]
    weight: Float[Tensor, " S"]
    solid_angle: Float[Tensor, " S"]


@dataclass(frozen=True)
class PrefilteredLight:
    """A table of bordered cubes (see cubemap.bordered): the specular mips, finest first, and the diffuse
    cube.

    sizes and offsets have one entry per cube. The last entry is that of the diffuse cube.
    """

    table: Float[Tensor, "T 3"]
    sizes: Int[Tensor, " L+1"]
    offsets: Int[Tensor, " L+1"]

    def both(
        self, normal: Float[Tensor, "N 3"], mirrored: Float[Tensor, "N 3"], roughness: Float[Tensor, "N 1"]
    ) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
        """Return (diffuse, specular) from one lookup.

        The diffuse value is irradiance / π on a surface with the normal `normal`. It is 1 for a light that is
        1 everywhere. The specular value is the mean of the light around `mirrored` under the GGX lobe of
        `roughness`, which is clamped to [0.08, 1].
        """
        levels = len(self.sizes) - 1
        level = roughness_to_level(roughness, levels)
        fine = level.detach().long().clamp(0, levels - 2)
        cube = torch.cat([fine, fine + 1, torch.full_like(fine, levels)])[:, 0]
        face, coordinates = face_coordinates(torch.cat([mirrored, normal]))
        # The mirror direction is sampled in the two mips next to the fractional mip level, so it is repeated.
        face, coordinates = (torch.cat([part[: len(fine)], part]) for part in (face, coordinates))
        size, offset = self.sizes.index_select(0, cube), self.offsets.index_select(0, cube)
        found = sample_bordered(self.table, face, coordinates, size, offset)
        lower, upper, diffuse = found.chunk(3)
        return diffuse, lower.lerp(upper, level - fine)

    def diffuse(self, normal: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Return only the diffuse value of `both`."""
        return self.both(normal, normal, torch.ones_like(normal[:, :1]))[0]

    def specular(
        self, direction: Float[Tensor, "N 3"], roughness: Float[Tensor, "N 1"]
    ) -> Float[Tensor, "N 3"]:
        """Return only the specular value of `both`."""
        return self.both(direction, direction, roughness)[1]


def level_roughness(levels: int) -> list[float]:
    """Return the roughness of each specular mip: evenly spaced from 0.08 to 0.5, and 1 for the last mip."""
    steps = levels - 2
    spread = MIDDLE_ROUGHNESS - LOWEST_ROUGHNESS
    return [LOWEST_ROUGHNESS + spread * level / steps for level in range(steps + 1)] + [1.0]


def roughness_to_level(roughness: Float[Tensor, "N 1"], levels: int) -> Float[Tensor, "N 1"]:
    """Return the fractional mip level for a roughness. This is the inverse of `level_roughness`."""
    low = (roughness.clamp(LOWEST_ROUGHNESS, MIDDLE_ROUGHNESS) - LOWEST_ROUGHNESS) * (
        (levels - 2) / (MIDDLE_ROUGHNESS - LOWEST_ROUGHNESS)
    )
    high = (roughness.clamp(MIDDLE_ROUGHNESS, 1.0) - MIDDLE_ROUGHNESS) / (1.0 - MIDDLE_ROUGHNESS)
    return low + high


def cosine_lobe(samples: int) -> Lobe:
    """Return a lobe of directions with the density cos θ / π."""
    u = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    cosine = (1 - u).sqrt()
    return Lobe(_spiral(cosine), torch.full((samples,), 1 / samples), (math.pi / (samples * cosine)).float())


def ggx_lobe(roughness: float, samples: int) -> Lobe:
    """Return a lobe of the directions into which GGX half vectors reflect v, for n = v.

    The density is D(h) / 4, and the weights are proportional to n·l. Only directions with n·l > 0 are
    returned.
    """
    alpha_squared = roughness**4
    u = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    half_squared = (1 - u) / (1 + (alpha_squared - 1) * u)
    cosine = 2 * half_squared - 1
    density = alpha_squared / (math.pi * (half_squared * (alpha_squared - 1) + 1).square()) / 4
    weight = cosine.clamp_min(0)
    kept = weight > 0
    return Lobe(
        _spiral(cosine)[kept],
        (weight / weight.sum())[kept].float(),
        (1 / (samples * density))[kept].float(),
    )


def _spiral(cosine: Float[Tensor, " S"]) -> Float[Tensor, "S 3"]:
    angle = torch.arange(len(cosine), dtype=torch.float64) * GOLDEN_ANGLE
    sine = (1 - cosine.square()).clamp_min(0).sqrt()
    return torch.stack([sine * angle.cos(), sine * angle.sin(), cosine], -1).float()


def prefilter(cube: Float[Tensor, "6 R R 3"], lookups: int = 6_000_000) -> PrefilteredLight:
    """Return the diffuse cube of 16² and the specular mips of R², (R/2)², … 16² for a light.

    R must be a power of two of at least 64. The result is differentiable with respect to the light. `lookups`
    limits the work per mip: a mip of T texels gets lookups / T samples per texel, between 8 and 1024. The
    default takes about 4 s at 512² on 2 CPU cores. A learned light is prefiltered in every step, so fewer
    lookups are used for it.
    """
    pyramid = [cube]
    while pyramid[-1].shape[1] > 2:
        pyramid.append(halve(pyramid[-1]))
    sources = [(bordered(level), level.shape[1]) for level in pyramid]
    sizes = [size for _, size in sources if size >= SMALLEST_MIP]
    assert len(sizes) >= 3, "a cube of at least 64² texels"
    tables = []
    for size, roughness in zip(sizes, level_roughness(len(sizes)), strict=True):
        lobe = ggx_lobe(roughness, _sample_count(size, lookups))
        tables.append(bordered(_convolve(sources, size, lobe)))
    diffuse = _convolve(sources, SMALLEST_MIP, cosine_lobe(_sample_count(SMALLEST_MIP, lookups)))
    tables.append(bordered(diffuse))
    starts = [0, *accumulate(map(len, tables[:-1]))]
    return PrefilteredLight(
        torch.cat(tables),
        torch.tensor([*sizes, SMALLEST_MIP], device=cube.device),
        torch.tensor(starts, device=cube.device),
    )


def _sample_count(size: int, lookups: int) -> int:
    return min(1024, max(8, lookups // (6 * size * size)))


def _convolve(
    sources: list[tuple[Float[Tensor, "T 3"], int]], size: int, lobe: Lobe
) -> Float[Tensor, "6 R R 3"]:
    """Return the convolution of the light with the lobe around each texel direction.

    sources: bordered mips of the light.
    """
    finest, finest_size = sources[0]
    normal = texel_directions(size).to(finest).reshape(-1, 3)
    frames = torch.stack([*tangent_frame(normal), normal])
    texel = 4 * math.pi / (6 * finest_size**2)
    mips = (0.5 * torch.log2(lobe.solid_angle / texel)).round().long().clamp(0, len(sources) - 1)
    groups = [
        (*sources[mip], lobe.direction[mips == mip].to(finest), lobe.weight[mips == mip].to(finest))
        for mip in mips.unique().tolist()
    ]
    return choose_convolution(finest)(groups, frames).reshape(6, size, size, 3)


def choose_convolution(light: Tensor) -> Callable[[list[LookupGroup], Tensor], Tensor]:
    """Return the numba function for a fixed float32 light on the CPU, otherwise the torch function."""
    compiled = None
    if light.device.type == "cpu" and light.dtype == torch.float32 and not light.requires_grad:
        compiled = numba_convolution()
    return compiled or convolve_torch


def numba_convolution() -> Callable[[list[LookupGroup], Tensor], Tensor] | None:
    """Return the numba function, or None if numba is missing or unusable."""
    module = numba_module("render.shade.prefilter_numba", "light: using torch (slower)")
    return module and module.convolve


def convolve_torch(groups: list[LookupGroup], frames: Float[Tensor, "3 N 3"]) -> Float[Tensor, "N 3"]:
    """Return the weighted sum of lookups over all groups for each of N coordinate frames.

    The result is differentiable. groups: tuples of a bordered cube, its size, S directions in the frame, and
    the weight of each direction. frames: tangent, bitangent and normal of each texel.
    """
    chunk = CHUNK if frames.device.type == "cpu" else GPU_CHUNK
    parts = [
        sum(_weighted_lookups(*group, axes, chunk) for group in groups) for axes in frames.split(chunk, dim=1)
    ]
    return torch.cat(parts)


def _weighted_lookups(
    table: Float[Tensor, "T 3"],
    size: int,
    direction: Float[Tensor, "S 3"],
    weight: Float[Tensor, " S"],
    axes: Float[Tensor, "3 N 3"],
    chunk: int,
) -> Float[Tensor, "N 3"]:
    """Return, for each of N coordinate frames, the weighted sum of lookups in one mip over S directions in
    this frame. At most `chunk` points are looked up at once.
    """
    count = axes.shape[1]
    at_once = max(1, chunk // count)
    total = 0
    for some, weights in zip(direction.split(at_once), weight.split(at_once), strict=True):
        world = (some @ axes.reshape(3, -1)).reshape(-1, 3)
        texels = sample_bordered(table, *face_coordinates(world), size)
        total = total + (texels.reshape(len(some), count, 3) * weights[:, None, None]).sum(0)
    return total


def tangent_frame(normal: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Return two unit vectors that complete unit normals to right-handed frames (Duff et al., JCGT 2017)."""
    x, y, z = normal.unbind(-1)
    sign = torch.where(z < 0, -1.0, 1.0).to(normal)
    a = -1 / (sign + z)
    b = x * y * a
    tangent = torch.stack([1 + sign * x * x * a, sign * b, -sign * x], -1)
    return tangent, torch.stack([b, sign + y * y * a, -y], -1)
