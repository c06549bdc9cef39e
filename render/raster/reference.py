"""The reference rasteriser in torch. It runs on any device. Tests compare the fast backends with it.

The rasteriser uses homogeneous edge functions (Olano and Greer, "Triangle scan conversion using 2D
homogeneous coordinates", 1997). For vᵢ = (xᵢ, yᵢ, wᵢ) and a pixel centre p = (x, y, 1), the cᵢ are the
solution of p = Σ cᵢ vᵢ. The pixel lies in the triangle if all cᵢ ≥ 0. No clipping at w = 0 is needed, the
weights cᵢ / Σc are perspective-correct, and z/w = Σ cᵢ zᵢ. By Cramer's rule cᵢ = eᵢ / det with eᵢ = p · (vᵢ₊₁
× vᵢ₊₂). For two triangles with a common edge, the two values of eᵢ for this edge are exact negatives, because
float32 products are exact in float64. Adjacent triangles therefore have neither gaps nor overlaps.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from render.raster.silhouette import CachedByFaces, blend_pairs, build_edges, find_pairs

# Number of (triangle, pixel) pairs processed at a time. The memory is then at most about 300 MB for any mesh.
PAIRS_AT_ONCE = 1 << 20


class ReferenceRasteriser:
    """The rasteriser interface in plain torch."""

    name = "reference"

    def __init__(self) -> None:
        self._edges = CachedByFaces(build_edges)

    def rasterize(
        self, clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
    ) -> Float[Tensor, "B H W 4"]:
        faces = faces.long()
        with torch.no_grad():
            nearest = [nearest_face(view.double(), faces, resolution) for view in clip]
        face = torch.stack(nearest).flatten()
        covered = (face >= 0).nonzero()[:, 0]
        view = covered // (resolution[0] * resolution[1])
        corners = clip.double()[view[:, None], faces[face[covered]]]
        x, y = pixel_centres(covered, resolution)
        edge = edge_functions(corners, x, y)
        uv = edge[:, :2] / edge.sum(-1, keepdim=True)
        with torch.no_grad():
            depth = (edge * corners[..., 2]).sum(-1) / determinant(corners)
            rest = torch.stack([depth, face[covered] + 1.0], -1)
        rast = torch.zeros(len(face), 4, dtype=clip.dtype, device=clip.device)
        rast = rast.index_put((covered,), torch.cat([uv, rest], -1).to(clip.dtype))
        return rast.view(len(clip), *resolution, 4)

    def interpolate(
        self,
        attributes: Float[Tensor, "V C"] | Float[Tensor, "B V C"],
        rast: Float[Tensor, "B H W 4"],
        faces: Int[Tensor, "F 3"],
    ) -> Float[Tensor, "B H W C"]:
        batch, height, width, _ = rast.shape
        pixels = rast.reshape(-1, 4)
        covered = (pixels[:, 3] > 0).nonzero()[:, 0]
        corner = faces.long()[pixels[covered, 3].long() - 1]
        if attributes.dim() == 2:
            values = attributes[corner]
        else:
            values = attributes[(covered // (height * width))[:, None], corner]
        u, v = pixels[covered, 0, None], pixels[covered, 1, None]
        blended = u * values[:, 0] + v * values[:, 1] + (1 - u - v) * values[:, 2]
        out = blended.new_zeros(len(pixels), attributes.shape[-1])
        return out.index_put((covered,), blended).view(batch, height, width, -1)

    def antialias(
        self,
        colour: Float[Tensor, "B H W C"],
        rast: Float[Tensor, "B H W 4"],
        clip: Float[Tensor, "B V 4"],
        faces: Int[Tensor, "F 3"],
    ) -> Float[Tensor, "B H W C"]:
        return blend_pairs(colour, clip, find_pairs(rast, clip, self._edges(faces)))

    def texture(
        self, texture: Float[Tensor, "Ht Wt C"], uv: Float[Tensor, "B H W 2"]
    ) -> Float[Tensor, "B H W C"]:
        return sample_bilinear(texture, uv)


def sample_bilinear(
    texture: Float[Tensor, "Ht Wt C"], uv: Float[Tensor, "B H W 2"]
) -> Float[Tensor, "B H W C"]:
    """Sample a texture bilinearly, clamped at the border. The texel centres are at (i + 0.5)/N."""
    batch, height, width, _ = uv.shape
    # The images are stacked along the height, because grid_sample would need a copy of the texture for each
    # image.
    grid = (2 * uv - 1).reshape(1, batch * height, width, 2)
    image = texture.permute(2, 0, 1)[None]
    sampled = torch.nn.functional.grid_sample(
        image, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0].permute(1, 2, 0).reshape(batch, height, width, -1)


def pixel_centres(
    pixel: Int[Tensor, " N"], resolution: tuple[int, int]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Return x/w and y/w (float64) of pixel centres. `pixel` contains flat indices over the batch."""
    height, width = resolution
    column, row = pixel % width, pixel // width % height
    return (column.double() + 0.5) * 2 / width - 1, (row.double() + 0.5) * 2 / height - 1


def edge_normals(corners: Float[Tensor, "N 3 4"]) -> Float[Tensor, "N 3 3"]:
    """Return vᵢ₊₁ × vᵢ₊₂ over (x, y, w), which is the homogeneous line opposite corner i."""
    a, b, c = corners[..., [0, 1, 3]].unbind(-2)
    cross = torch.linalg.cross
    return torch.stack([cross(b, c, dim=-1), cross(c, a, dim=-1), cross(a, b, dim=-1)], -2)


def determinant(corners: Float[Tensor, "N 3 4"]) -> Float[Tensor, " N"]:
    """Return v₀ · (v₁ × v₂) over (x, y, w). Its sign determines which side of the face is seen."""
    a, b, c = corners[..., [0, 1, 3]].unbind(-2)
    return (a * torch.linalg.cross(b, c, dim=-1)).sum(-1)


def edge_functions(
    corners: Float[Tensor, "N 3 4"], x: Float[Tensor, " N"], y: Float[Tensor, " N"]
) -> Float[Tensor, "N 3"]:
    """Return eᵢ of each triangle at its pixel centre (x/w, y/w)."""
    normal = edge_normals(corners)
    return normal[..., 0] * x[:, None] + normal[..., 1] * y[:, None] + normal[..., 2]


def nearest_face(
    clip: Float[Tensor, "V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
) -> Int[Tensor, " N"]:
    """Return the index of the nearest face at each pixel centre of one view, −1 in the background.

    The computation is in float64. If faces have equal depth, the smallest index is returned.
    """
    height, width = resolution
    corners = clip[faces]
    normal, det = edge_normals(corners), determinant(corners)
    sign = det.sign()[:, None]
    low, size = pixel_boxes(corners, det, resolution)
    counts = size.prod(-1)
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(faces) else 0
    depth = clip.new_full((height * width,), torch.inf)
    nearest = torch.full((height * width,), len(faces), device=clip.device)
    for start in range(0, total, PAIRS_AT_ONCE):
        pair = torch.arange(start, min(start + PAIRS_AT_ONCE, total), device=clip.device)
        face = torch.searchsorted(ends, pair, right=True)
        local = pair - (ends[face] - counts[face])
        column = low[face, 0] + local % size[face, 0]
        pixel = (low[face, 1] + local // size[face, 0]) * width + column
        x, y = pixel_centres(pixel, resolution)
        n = normal[face] * sign[face, :, None]
        edge = n[..., 0] * x[:, None] + n[..., 1] * y[:, None] + n[..., 2]
        z = (edge * corners[face, :, 2]).sum(-1) / det[face].abs()
        inside = (edge > 0) | ((edge == 0) & is_top_left(n))
        hit = inside.all(-1) & (edge.sum(-1) > 0) & (z.abs() <= 1)
        face, pixel, z = face[hit], pixel[hit], z[hit]
        nearer = depth.scatter_reduce(0, pixel, z, "amin")
        nearest[nearer < depth] = len(faces)
        front = z == nearer[pixel]
        nearest.scatter_reduce_(0, pixel[front], face[front], "amin")
        depth = nearer
    return torch.where(nearest < len(faces), nearest, -1)


def is_top_left(normal: Float[Tensor, "... 3"]) -> Bool[Tensor, "..."]:
    """Return whether a point exactly on an edge with this inward normal belongs to the triangle (top-left
    rule).

    The result is true for exactly one of n and −n, and therefore for one of the two triangles at an edge.
    """
    x, y, w = normal.unbind(-1)
    return (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (w > 0))))


def pixel_boxes(
    corners: Float[Tensor, "F 3 4"], det: Float[Tensor, " F"], resolution: tuple[int, int]
) -> tuple[Int[Tensor, "F 2"], Int[Tensor, "F 2"]]:
    """Return the first pixel (column, row) and the size of a box around the pixels of each triangle."""
    limit = torch.tensor([resolution[1], resolution[0]], device=corners.device)
    w = corners[..., 3]
    in_front = (w > 0).all(-1)[:, None]
    projected = corners[..., :2] / torch.where(in_front, w, 1)[..., None]
    position = (projected + 1) * limit / 2 - 0.5
    # The tolerance of 1e-6 includes centres that lie exactly on the outline.
    low = (position.amin(1) - 1e-6).ceil().clamp(min=0)
    high = torch.minimum((position.amax(1) + 1e-6).floor(), limit - 1.0)
    # A triangle that extends behind the camera has an unbounded projection, so its box is the whole image.
    low = torch.where(in_front, low, 0)
    high = torch.where(in_front, high, limit - 1.0)
    drawable = (det != 0) & det.isfinite() & (w > 0).any(-1) & corners.isfinite().all(-1).all(-1)
    size = torch.where(drawable[:, None], (high - low + 1).clamp(min=0), 0)
    return torch.where(drawable[:, None], low, 0).long(), size.long()
