"""Cube maps and latitude-longitude maps of directions.

Directions are in world space, which is right-handed with +y up. They need not have unit length.

A lat-long map (equirectangular) has +y in row 0 and −y in the last row. The centre of the image is −z, the
direction in which a camera at azimuth 0 (on +z) looks. The direction +x is a quarter of the width to the
right of the centre. The left and right borders are both +z.

A cube map [6,R,R,3] has the faces +x, −x, +y, −y, +z, −z. `FACE_AXES` contains the directions of the rows and
columns of each face. A cube is sampled from a table in which every face has a border of one texel from the
adjacent faces, so that bilinear lookups are continuous over edges and corners.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

# For each face, the outward axis, the axis of increasing columns and the axis of increasing rows.
FACE_AXES = (
    ((1, 0, 0), (0, 0, -1), (0, -1, 0)),
    ((-1, 0, 0), (0, 0, 1), (0, -1, 0)),
    ((0, 1, 0), (1, 0, 0), (0, 0, 1)),
    ((0, -1, 0), (1, 0, 0), (0, 0, -1)),
    ((0, 0, 1), (1, 0, 0), (0, -1, 0)),
    ((0, 0, -1), (-1, 0, 0), (0, -1, 0)),
)


def _axes(like: Tensor) -> Float[Tensor, "6 3 3"]:
    return torch.tensor(FACE_AXES, dtype=like.dtype, device=like.device)


def texel_directions(size: int) -> Float[Tensor, "6 R R 3"]:
    """Return unit directions of the texel centres of a cube with faces of size² texels."""
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * (2 / size) - 1
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    local = torch.nn.functional.normalize(torch.stack([torch.ones_like(rows), columns, rows], -1), dim=-1)
    local = local.float()
    return torch.einsum("fac,ija->fijc", _axes(local), local)


def texel_solid_angles(size: int) -> Float[Tensor, "R R"]:
    """Return the solid angle of each texel of a face in steradian. The sum over six faces is 4π."""
    corners = torch.linspace(-1, 1, size + 1, dtype=torch.float64)
    y, x = torch.meshgrid(corners, corners, indexing="ij")
    area = torch.atan2(x * y, (x * x + y * y + 1).sqrt())
    return (area[1:, 1:] - area[1:, :-1] - area[:-1, 1:] + area[:-1, :-1]).float()


@lru_cache(maxsize=4)
def _signed_axes(device: torch.device) -> Int[Tensor, "6 3"]:
    """Return `FACE_AXES` as indices into the components x, −x, y, −y, z, −z of a direction."""
    axes = torch.tensor(FACE_AXES)
    return (2 * axes.abs().argmax(-1) + (axes.sum(-1) < 0)).to(device)


def face_coordinates(
    direction: Float[Tensor, "N 3"],
) -> tuple[Int[Tensor, " N"], Float[Tensor, "N 2"]]:
    """Return the face index and the (column, row) coordinates in [−1, 1] on this face.

    The coordinates are differentiable with respect to the direction.
    """
    # The six signed components are in the order of the faces. The index of the largest component is the face
    # index.
    signed = torch.stack([direction, -direction], -1).flatten(-2)
    face = signed.detach().argmax(-1)
    local = signed.gather(-1, _signed_axes(direction.device).index_select(0, face))
    return face, local[:, 1:] / local[:, :1].clamp_min(torch.finfo(direction.dtype).tiny)


@lru_cache(maxsize=32)
def _border_sources(size: int) -> Int[Tensor, " T"]:
    """Return, for each texel of the bordered faces, the flat index of the original texel to copy."""
    step = 2 / size
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * step - 1
    # The offset beyond the edge is small, so that the nearest texel of the adjacent face is the texel across
    # the edge.
    beyond = torch.tensor([1 + 1e-3 * step], dtype=torch.float64)
    positions = torch.cat([-beyond, centres, beyond])
    rows, columns = torch.meshgrid(positions, positions, indexing="ij")
    local = torch.stack([torch.ones_like(rows), columns, rows], -1)
    directions = torch.einsum("fac,ija->fijc", _axes(local), local).reshape(-1, 3)
    face, coordinates = face_coordinates(directions)
    column, row = ((coordinates + 1) / step).long().clamp(0, size - 1).unbind(-1)
    return (face * size + row) * size + column


def bordered(cube: Float[Tensor, "6 R R 3"]) -> Float[Tensor, "T 3"]:
    """Return the faces with a border of one texel from the adjacent faces, flattened: T = 6 (R + 2)².

    A corner of the border has no source texel. Its value is the mean of the three texels at this corner of
    the cube, so that a lookup gives the same result on all three faces.
    """
    size = cube.shape[1]
    sources = _border_sources(size).to(cube.device)
    faces = cube.reshape(-1, 3).index_select(0, sources).reshape(6, size + 2, size + 2, 3)
    ends, inner = torch.tensor([0, 0, -1, -1]), torch.tensor([0, 0, size - 1, size - 1])
    across, inner_across = torch.tensor([0, -1, 0, -1]), torch.tensor([0, size - 1, 0, size - 1])
    beside = torch.where(across == 0, 1, size)
    below = torch.where(ends == 0, 1, size)
    own = cube[:, inner, inner_across]
    corners = (own + faces[:, ends, beside] + faces[:, below, across]) / 3
    faces = faces.index_put((torch.arange(6)[:, None], ends[None], across[None]), corners)
    return faces.reshape(-1, 3)


def sample_bordered(
    table: Float[Tensor, "T 3"],
    face: Int[Tensor, " N"],
    coordinates: Float[Tensor, "N 2"],
    size: int | Int[Tensor, " N"],
    offset: int | Int[Tensor, " N"] = 0,
) -> Float[Tensor, "N 3"]:
    """Sample cubes from `bordered` bilinearly.

    table: the texels of one or several cubes. size: the size of the cube to sample. offset: the first row of
    this cube in the table. size and offset may differ between points.
    """
    limit = size[:, None] if isinstance(size, Tensor) else size
    # Texel i of a face is texel i + 1 of the bordered face.
    position = (coordinates + 1) * (0.5 * limit) + 0.5
    corner = position.detach().long().clamp_min(0)
    corner = corner.minimum(limit) if isinstance(size, Tensor) else corner.clamp_max(limit)
    beyond = position - corner
    across, down = torch.stack([1 - beyond, beyond]).unbind(-1)
    weight = (down[:, None] * across[None]).reshape(4, -1)
    column, row = corner.unbind(-1)
    stride = size + 2
    first = offset + (face * stride + row) * stride + column
    below = first + stride
    index = torch.cat([first, first + 1, below, below + 1])
    texels = table.index_select(0, index).reshape(4, -1, 3)
    return (texels * weight[:, :, None]).sum(0)


def latlong_directions(height: int, width: int) -> Float[Tensor, "H W 3"]:
    """Return unit directions of the pixel centres of a lat-long map."""
    polar = (torch.arange(height, dtype=torch.float64) + 0.5) * (math.pi / height)
    around = (torch.arange(width, dtype=torch.float64) + 0.5) * (2 * math.pi / width) - math.pi
    polar, around = torch.meshgrid(polar, around, indexing="ij")
    components = [polar.sin() * around.sin(), polar.cos(), -polar.sin() * around.cos()]
    return torch.stack(components, -1).float()


def sample_latlong(image: Float[Tensor, "H W 3"], direction: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Sample a lat-long map bilinearly. Lookups wrap around horizontally and are clamped at the poles."""
    height, width = image.shape[:2]
    x, y, z = torch.nn.functional.normalize(direction, dim=-1).unbind(-1)
    column = (torch.atan2(x, -z) / (2 * math.pi) + 0.5) * width - 0.5
    row = torch.acos(y.clamp(-1, 1)) / math.pi * height - 0.5
    left, top = column.floor(), row.floor()
    fx, fy = (column - left)[:, None], (row - top)[:, None]
    columns = [(left.long() + step) % width for step in (0, 1)]
    rows = [(top.long() + step).clamp(0, height - 1) for step in (0, 1)]
    upper = image[rows[0], columns[0]] * (1 - fx) + image[rows[0], columns[1]] * fx
    lower = image[rows[1], columns[0]] * (1 - fx) + image[rows[1], columns[1]] * fx
    return upper * (1 - fy) + lower * fy


def latlong_to_cube(image: Float[Tensor, "H W 3"], size: int) -> Float[Tensor, "6 R R 3"]:
    """Resample a lat-long map to a cube with faces of size² texels.

    A map with a much higher resolution is first reduced by averaging, so that no small bright source is
    missed.
    """
    while image.shape[1] >= 8 * size and image.shape[0] % 2 == 0 and image.shape[1] % 2 == 0:
        image = torch.nn.functional.avg_pool2d(image.permute(2, 0, 1), 2).permute(1, 2, 0)
    directions = texel_directions(size).to(image)
    return sample_latlong(image, directions.reshape(-1, 3)).reshape(6, size, size, 3)


def cube_to_latlong(cube: Float[Tensor, "6 R R 3"], height: int) -> Float[Tensor, "H W 3"]:
    """Resample a cube to a lat-long map of height × 2 height, in the layout that `latlong_to_cube`
    expects.
    """
    directions = latlong_directions(height, 2 * height).to(cube).reshape(-1, 3)
    face, coordinates = face_coordinates(directions)
    return sample_bordered(bordered(cube), face, coordinates, cube.shape[1]).reshape(height, 2 * height, 3)


def halve(cube: Float[Tensor, "6 R R 3"]) -> Float[Tensor, "6 R//2 R//2 3"]:
    """Return the mean of each 2×2 block, weighted by solid angle. The total power of the light is
    preserved.
    """
    size = cube.shape[1]
    weight = texel_solid_angles(size).to(cube)[None, :, :, None]
    blocks = torch.nn.functional.avg_pool2d((cube * weight).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    return blocks / torch.nn.functional.avg_pool2d(weight.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
