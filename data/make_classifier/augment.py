"""Augmentation of the classifier's training images: distortion, noise, blur, holes, scale and colour.

The augmentation makes clean renders similar to renders of optimised surfaces. Each image of a batch is
augmented independently, on the device of the batch. In shapes, B is the number of images and S the pixels per
side.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
# Resolutions, as shares of S, to which the parts of a batch are downsampled before they are upsampled again.
BLURS = (1.0, 0.6, 0.4, 0.28)


def augment(
    images: Float[Tensor, "B 3 S S"], domain: str, generator: torch.Generator
) -> Float[Tensor, "B 3 S S"]:
    """Return randomly augmented images, some of them mirrored, in [−1, 1]. domain: normal or shaded."""
    empty = 0.0 if domain == "normal" else -1.0
    images = _warp(images - empty, domain, generator)
    images = _roughen(images, generator) if domain == "normal" else _recolour(images, generator)
    images = _blur(_cut_holes(images, generator))
    return (images + empty).clamp(-1, 1)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Float[Tensor, "B 1 1 1"]:
    drawn = torch.rand(count, 1, 1, 1, generator=generator, device=generator.device)
    return low + (high - low) * drawn


def _waves(
    count: int, channels: int, cells: int, side: int, generator: torch.Generator
) -> Float[Tensor, "B C S S"]:
    """Return smooth noise, upsampled from cells × cells values, with a standard deviation of about 1."""
    noise = torch.randn(count, channels, cells, cells, generator=generator, device=generator.device)
    return F.interpolate(noise, (side, side), mode="bicubic", align_corners=False)


def _warp(images: Tensor, domain: str, generator: torch.Generator) -> Tensor:
    """Scale, shift and distort the images and mirror half of them. Pixels outside the source image are 0."""
    count, side = len(images), images.shape[-1]
    size = torch.exp(_uniform(count, -math.log(1.25), math.log(1.25), generator))
    axis = (torch.arange(side, device=images.device) + 0.5) * (2 / side) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    shift = torch.cat([_uniform(count, -0.15, 0.15, generator) for _ in range(2)], 1)
    bend = sum(
        _waves(count, 2, cells, side, generator) * _uniform(count, 0.0, most, generator)
        for cells, most in ((5, 0.05), (12, 0.025))
    )
    grid = (torch.stack([x, y])[None] + shift + bend) / size
    mirrored = torch.rand(count, 1, 1, 1, generator=generator, device=images.device) < 0.5
    sign = torch.where(mirrored, -1.0, 1.0)
    grid = torch.cat([grid[:, :1] * sign, grid[:, 1:]], 1).permute(0, 2, 3, 1)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if domain == "normal":
        images = torch.cat([images[:, :1] * sign, images[:, 1:]], 1)
    return images


def _roughen(normals: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of several wavelengths to the directions of normals.

    The length of each normal is kept. So the background, where the length is 0, does not change.
    """
    count, side = len(normals), normals.shape[-1]
    noise = sum(
        _waves(count, 3, cells, side, generator) * _uniform(count, 0.0, 0.25, generator)
        for cells in (6, 12, 24, 48)
    )
    length = normals.norm(dim=1, keepdim=True)
    return F.normalize(normals + noise * length, dim=1) * length


def _recolour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change exposure, gamma and saturation of the images, and add spots and noise.

    Values are in [0, 2]. Black (0) stays black.
    """
    count, side = len(images), images.shape[-1]
    colour = (images / 2).clamp(0, 1)
    visible = (colour.amax(1, keepdim=True) * 20).clamp(max=1)
    gamma = torch.exp(_uniform(count, -0.2, 0.2, generator))
    colour = colour.clamp(min=1e-4) ** gamma * torch.exp(_uniform(count, -0.2, 0.2, generator))
    luma = (colour * colour.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    colour = luma + (colour - luma) * _uniform(count, 0.75, 1.4, generator)
    for cells in (6, 14, 30):
        shared = _waves(count, 1, cells, side, generator) * _uniform(count, 0.0, 0.08, generator)
        tinted = _waves(count, 3, cells, side, generator) * _uniform(count, 0.0, 0.035, generator)
        colour = colour + shared + tinted
    grain = torch.randn(colour.shape, generator=generator, device=colour.device)
    colour = colour + grain * _uniform(count, 0.0, 0.03, generator)
    return 2 * colour.clamp(0, 1) * visible


def _cut_holes(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cut small holes into about a third of the images."""
    count, side = len(images), images.shape[-1]
    height = _uniform(count, 1.7, 2.5, generator)
    without_holes = torch.rand(count, 1, 1, 1, generator=generator, device=images.device) < 0.65
    holes = (_waves(count, 1, 16, side, generator) > height) & ~without_holes
    return images.masked_fill(holes, 0.0)


def _blur(images: Tensor) -> Tensor:
    """Blur the images: downsample each part of the batch to one of BLURS and upsample it again."""
    side, parts = images.shape[-1], []
    for part, share in zip(images.chunk(len(BLURS)), BLURS, strict=False):
        if share < 1:
            small = round(side * share)
            part = F.interpolate(part, (small, small), mode="bilinear", antialias=True)
            part = F.interpolate(part, (side, side), mode="bilinear")
        parts.append(part)
    return torch.cat(parts)
