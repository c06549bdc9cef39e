"""Noise that is fixed to the surface (Consistent Flow Distillation, arXiv 2501.05445).

Space is divided into cubic cells. Each cell q has its own noise values ε_q, which are the same in all views.
Let Ω_p be the set of visible cells that project to latent pixel p. The noise of p is Σ_{q ∈ Ω_p} ε_q /
√|Ω_p|. A cell is assigned to the pixel to which its centre projects. The sets Ω_p of one view are therefore
disjoint, and the noise is white with unit variance.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# The edge length of a cell in render pixels. With this size, nearly every visible cell of a surface that
# faces the camera contains a pixel centre. A latent pixel is 4 to 8 render pixels wide, so it contains
# several cells.
CELL_PIXELS = 1.2
# The height of the visible frame at the origin in world units, for a camera at distance 3 with a field of
# view of 40°.
FRAME_HEIGHT = 2.2
# The number of bits of a cell index per axis.
CELL_BITS = 17
# The number of bits of a hash value that are converted to a uniform random number.
UNIFORM_BITS = 24


def surface_noise(
    independent: Float[Tensor, "B C h w"],
    position: Float[Tensor, "N 3"],
    pixel: Int[Tensor, " N"],
    render_size: tuple[int, int],
    world_to_clip: Float[Tensor, "B 4 4"],
    seed: int,
) -> Float[Tensor, "B C h w"]:
    """Return the noise of each view. Latent pixels without a visible cell keep the value of `independent`.

    position: world positions at the covered render pixels. pixel: the flat indices of these pixels over all B
    images of render_size (height, width). seed: the seed of the cell noise, which is the same at every step.
    """
    views, channels, height, width = independent.shape
    side = CELL_PIXELS * FRAME_HEIGHT / render_size[0]
    view = pixel // (render_size[0] * render_size[1])
    view, cell = visible_cells(view, (position / side).floor().long())
    owner, inside = latent_pixel((cell + 0.5) * side, view, world_to_clip, (height, width))
    values = cell_noise(cell, channels, seed).to(independent.dtype) * inside[:, None]
    total = independent.new_zeros(views * height * width, channels).index_add_(0, owner, values)
    count = independent.new_zeros(views * height * width).index_add_(0, owner, inside.to(independent.dtype))
    noise = total / count.clamp(min=1).sqrt()[:, None]
    own = independent.permute(0, 2, 3, 1).reshape(-1, channels)
    noise = torch.where((count > 0)[:, None], noise, own)
    return noise.view(views, height, width, channels).permute(0, 3, 1, 2).contiguous()


def visible_cells(
    view: Int[Tensor, " N"], cell: Int[Tensor, "N 3"]
) -> tuple[Int[Tensor, " M"], Int[Tensor, "M 3"]]:
    """Return the unique pairs of view and cell."""
    half = 1 << (CELL_BITS - 1)
    key = view
    for axis in range(3):
        key = (key << CELL_BITS) + (cell[:, axis].clamp(-half, half - 1) + half)
    key = torch.unique(key)
    axes = [((key >> (CELL_BITS * (2 - axis))) & ((1 << CELL_BITS) - 1)) - half for axis in range(3)]
    return key >> (3 * CELL_BITS), torch.stack(axes, -1)


def latent_pixel(
    centre: Float[Tensor, "M 3"],
    view: Int[Tensor, " M"],
    world_to_clip: Float[Tensor, "B 4 4"],
    size: tuple[int, int],
) -> tuple[Int[Tensor, " M"], Bool[Tensor, " M"]]:
    """Return the latent pixel of each centre (flat index over all views), and whether the centre is inside
    the image.
    """
    clip = (world_to_clip[view] @ torch.nn.functional.pad(centre, (0, 1), value=1.0)[:, :, None])[:, :, 0]
    scale = clip.new_tensor([size[1], size[0]])
    column, row = ((clip[:, :2] / clip[:, 3:].clamp(min=1e-6) + 1) / 2 * scale).floor().long().unbind(-1)
    inside = (clip[:, 3] > 0) & (column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0])
    number = (view * size[0] + row) * size[1] + column
    return torch.where(inside, number, torch.zeros_like(number)), inside


def cell_noise(cell: Int[Tensor, "M 3"], channels: int, seed: int) -> Float[Tensor, "M C"]:
    """Return standard normal numbers that depend only on cell, channel and seed (Box-Muller transform)."""
    key = _mix(torch.full_like(cell[:, 0], seed & (2**62 - 1)))
    for axis in range(3):
        key = _mix(key ^ cell[:, axis])
    channel = torch.arange(2 * channels, device=cell.device)
    bits = _mix(key[:, None] + channel * -0x61C8864680B583EB) & ((1 << UNIFORM_BITS) - 1)
    radius, angle = ((bits + 0.5) / (1 << UNIFORM_BITS)).split(channels, dim=1)
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


def _mix(x: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    """Map 64-bit integers bijectively to values whose bits look random (the finaliser of SplitMix64)."""
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


def _shift(x: Int[Tensor, "*N"], bits: int) -> Int[Tensor, "*N"]:
    """Return the logical right shift of x. torch's >> is an arithmetic shift."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
