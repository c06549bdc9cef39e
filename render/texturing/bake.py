"""Baking of a field over the surface into the textures of an unwrapped mesh.

The centre of texel (row i, column j) of an H×W texture is at uv = ((j + 0.5) / W, (i + 0.5) / H).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from render.mesh import Mesh, face_cross
from render.raster.interface import Rasteriser
from render.texturing.uv import uv_areas, uv_clip

SurfaceField = Callable[[Float[Tensor, "N 3"]], dict[str, Float[Tensor, "N C"]]]

# The width in texels of the baked border around a chart. Bilinear lookups inside a chart read texels up to
# one texel outside along each axis.
REACH = 2


@torch.no_grad()
def bake(
    mesh: Mesh, field: SurfaceField, texture_res: tuple[int, int], rasteriser: Rasteriser, chunk: int = 2**18
) -> dict[str, Float[Tensor, "H W C"]]:
    """Return textures with the field at the surface point of every texel. texture_res is (height, width).

    Texels just outside a chart are read by bilinear lookups near its edge, so they get the field at a point
    on the extended plane of the nearest face. All other texels are filled smoothly from the charts, so that
    mip levels show no seams. `field` is evaluated at chunks of world-space points. There is one texture for
    each name in the result of `field`.
    """
    owner = texel_owners(mesh, texture_res, rasteriser)
    texels = torch.nonzero(owner.reshape(-1) >= 0)[:, 0]
    assert len(texels) > 0, "no texel of the texture lies on the mesh"
    stretch = _typical_stretch(mesh)
    parts: dict[str, list[Tensor]] = {}
    for some in texels.split(chunk):
        points = _surface_points(mesh, some, owner.reshape(-1)[some], texture_res, stretch)
        for name, values in field(points).items():
            parts.setdefault(name, []).append(values)
    known = owner >= 0
    textures = {}
    for name, values in parts.items():
        concatenated = torch.cat(values)
        texture = concatenated.new_zeros(owner.numel(), concatenated.shape[-1])
        texture[texels] = concatenated
        textures[name] = fill_unknown(texture.reshape(*texture_res, -1), known)
    return textures


def texel_owners(mesh: Mesh, texture_res: tuple[int, int], rasteriser: Rasteriser) -> Int[Tensor, "H W"]:
    """Return the index of the face that each texel belongs to, −1 for a texel without a face.

    A texel belongs to the face that covers its centre. If no face covers it, it belongs to the face of the
    nearest texel with a face, within REACH along each axis. A face that covers no texel centre gets the texel
    at its centroid if the texel is free.
    """
    assert mesh.uv is not None and mesh.uv_faces is not None, "the mesh has no texture coordinates"
    height, width = texture_res
    rast = rasteriser.rasterize(uv_clip(mesh)[None], mesh.uv_faces, texture_res)[0]
    owner = rast[..., 3].round().long() - 1

    covered = torch.zeros(len(mesh.faces), dtype=torch.bool, device=owner.device)
    covered[owner[owner >= 0]] = True
    small = torch.nonzero(~covered)[:, 0]
    middle = mesh.uv[mesh.uv_faces[small]].mean(1)
    column = (middle[:, 0] * width).long().clamp(0, width - 1)
    row = (middle[:, 1] * height).long().clamp(0, height - 1)
    free = owner[row, column] < 0
    owner[row[free], column[free]] = small[free]
    return _dilate_owners(owner)


def _dilate_owners(owner: Int[Tensor, "H W"]) -> Int[Tensor, "H W"]:
    """Assign each free texel to the owner of the nearest owned texel within REACH along each axis."""
    height, width = owner.shape
    padded = F.pad(owner, (REACH,) * 4, value=-1)
    offsets = [(dy, dx) for dy in range(-REACH, REACH + 1) for dx in range(-REACH, REACH + 1)]
    spread = owner
    for dy, dx in sorted(offsets, key=lambda o: o[0] ** 2 + o[1] ** 2):
        shifted = padded[REACH + dy : REACH + dy + height, REACH + dx : REACH + dx + width]
        spread = torch.where(spread < 0, shifted, spread)
    return spread


def owned_texels(
    mesh: Mesh,
    texture_res: tuple[int, int],
    rasteriser: Rasteriser,
    share: float,
    generator: torch.Generator,
) -> tuple[Int[Tensor, " T"], Float[Tensor, "T 3"]]:
    """Return the flat indices of the texels that `bake` computes, and the world points at their centres.

    share: the fraction of the texels that is returned. If `share` is below 1, the texels are selected at
    random.
    """
    owner = texel_owners(mesh, texture_res, rasteriser).reshape(-1)
    texels = torch.nonzero(owner >= 0)[:, 0]
    if share < 1:
        order = torch.randperm(len(texels), generator=generator)
        texels = texels[order[: int(share * len(texels))].to(texels.device)]
    return texels, _surface_points(mesh, texels, owner[texels], texture_res, _typical_stretch(mesh))


def _typical_stretch(mesh: Mesh) -> Float[Tensor, ""]:
    """Return the world length per unit of uv, computed from the total areas of the mesh."""
    world = face_cross(mesh.v_pos, mesh.faces).norm(dim=-1).sum() / 2
    return (world / uv_areas(mesh).abs().sum().clamp(min=1e-12)).sqrt()


def _surface_points(
    mesh: Mesh,
    texels: Int[Tensor, " N"],
    faces: Int[Tensor, " N"],
    texture_res: tuple[int, int],
    stretch: Float[Tensor, ""],
) -> Float[Tensor, "N 3"]:
    """Return the world points at the centres of texels. Each point is on the plane of the face that the texel
    belongs to.
    """
    height, width = texture_res
    centre = torch.stack([(texels % width + 0.5) / width, (texels // width + 0.5) / height], -1)
    a, b, c = mesh.uv[mesh.uv_faces[faces]].double().unbind(1)
    weights = _barycentric(centre.double(), a, b, c).to(mesh.v_pos.dtype)
    inside = weights.clamp(min=0)
    inside = inside / inside.sum(-1, keepdim=True)
    corners = mesh.v_pos[mesh.faces[faces]]
    on_face = (corners * inside[..., None]).sum(1)
    beyond = (corners * weights[..., None]).sum(1) - on_face
    # For a thin face, the point on the extended plane can be far away, so its distance from the face is
    # limited to the typical length of 2 · REACH texels.
    longest = REACH * 2 * stretch / min(height, width)
    length = beyond.norm(dim=-1, keepdim=True)
    return on_face + beyond * (longest / length.clamp(min=1e-30)).clamp(max=1)


def _barycentric(
    p: Float[Tensor, "N 2"], a: Float[Tensor, "N 2"], b: Float[Tensor, "N 2"], c: Float[Tensor, "N 2"]
) -> Float[Tensor, "N 3"]:
    """Return barycentric weights of p. At least one weight is negative if p is outside the triangle. All
    weights are 1/3 if the triangle has no area.
    """
    ab, ac, ap = b - a, c - a, p - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    flat = area.abs() < 1e-14
    area = torch.where(flat, torch.ones_like(area), area)
    at_b = (ap[:, 0] * ac[:, 1] - ap[:, 1] * ac[:, 0]) / area
    at_c = (ab[:, 0] * ap[:, 1] - ab[:, 1] * ap[:, 0]) / area
    weights = torch.stack([1 - at_b - at_c, at_b, at_c], -1)
    return torch.where(flat[:, None], torch.full_like(weights, 1 / 3), weights)


def fill_unknown(values: Float[Tensor, "H W C"], known: Bool[Tensor, "H W"]) -> Float[Tensor, "H W C"]:
    """Fill each unknown texel with the mean of the known texels in its block.

    The block is the smallest aligned block of 2^k × 2^k texels that contains the unknown texel and at least
    one known texel. A texel of a mip level is the mean of such a block, so it depends only on known texels.
    The result is zero if no texel is known.
    """
    weight = known.to(values.dtype)[None, None]
    return _pull_push((values * known[..., None]).permute(2, 0, 1)[None], weight)[0].permute(1, 2, 0)


def _pull_push(
    weighted: Float[Tensor, "1 C H W"], weight: Float[Tensor, "1 1 H W"]
) -> Float[Tensor, "1 C H W"]:
    """Return weighted / weight where weight > 0, and elsewhere the value of the next coarser level."""
    height, width = weight.shape[2:]
    values = weighted / weight.clamp(min=1e-20)
    if bool((weight > 0).all()) or max(height, width) == 1:
        return values
    halves = [F.avg_pool2d(x, 2, ceil_mode=True, divisor_override=1) for x in (weighted, weight)]
    coarse = _pull_push(*halves)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width]
    return torch.where(weight > 0, values, fine)
