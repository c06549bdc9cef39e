"""Antialiasing by silhouette edges. The pixel pairs that an outline crosses are found and then blended.

An edge is a silhouette if all its faces project to one side of it, as at a fold or an open border. If a
silhouette passes between the centres of two neighbouring pixels, the pixel that contains the crossing is
partly covered. The inner pixel is the one on the object's side. Let d in [0, 1] be the distance of the
crossing from the centre of the inner pixel:
  d < 0.5: the inner pixel gets the colour of the outer pixel with weight 0.5 − d;
  d > 0.5: the outer pixel gets the colour of the inner pixel with weight d − 0.5.
Steep edges are tested between horizontal neighbours and flat edges between vertical neighbours, so a slanted
edge counts only once. nvdiffrast searches only the edges of triangles that are visible at a pixel centre.
This module searches all edges, which gives the whole gradient even if the triangles at the outline are so
small that they contain no pixel centre.

The search is not differentiable. The blend computes the crossings again and is differentiable with respect to
colour and clip. Coordinates are in pixels. Positions and weights are computed in float64.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Edges:
    """E edges of a mesh, and for each face of an edge the corner that is opposite the edge.

    vertices [E,2]: both ends of each edge. opposite [N]: the opposite corners, edge by edge.
    opposite[start[e] : start[e + 1]] belongs to edge e. start [E+1]: offsets into opposite.
    """

    vertices: Int[Tensor, "E 2"]
    start: Int[Tensor, " E+1"]
    opposite: Int[Tensor, " N"]


@dataclass(frozen=True)
class Pairs:
    """K pixel pairs that visible silhouettes cross. The pairs are unique and sorted by view, axis and pixel.

    inner, outer [K]: flat pixel indices over (B, H, W); the inner pixel is on the object's side. edge [K,2]:
    vertex indices. view [K]: image index. axis [K]: 0 for a horizontal pair, 1 for a vertical pair.
    """

    inner: Int[Tensor, " K"]
    outer: Int[Tensor, " K"]
    edge: Int[Tensor, "K 2"]
    view: Int[Tensor, " K"]
    axis: Int[Tensor, " K"]


class CachedByFaces:
    """A function `build` with a cache of its last result, for meshes with fixed topology.

    The result is built again if `faces` is a new tensor or was modified in place.
    """

    def __init__(self, build: Callable) -> None:
        self._build = build
        self._faces: weakref.ref | None = None
        self._version = -1
        self._built = None

    def __call__(self, faces: Int[Tensor, "F 3"], *arguments):
        """Return `build(faces, *arguments)`. A change of `arguments` alone is not detected, so `arguments`
        must depend only on the mesh.
        """
        # Nothing is cached for tensors created in inference mode. These tensors have no version counter, so a
        # modification would not be detected.
        if faces.is_inference():
            return self._build(faces, *arguments)
        if self._faces is None or self._faces() is not faces or self._version != faces._version:
            self._built = self._build(faces, *arguments)
            self._faces, self._version = weakref.ref(faces), faces._version
        return self._built


def build_edges(faces: Int[Tensor, "F 3"]) -> Edges:
    """Return the unique edges of a mesh, sorted by (smaller, larger) vertex."""
    faces = faces.long()
    pairs = torch.cat([faces[:, [1, 2]], faces[:, [2, 0]], faces[:, [0, 1]]])
    opposite = torch.cat([faces[:, 0], faces[:, 1], faces[:, 2]])
    low, high = pairs.amin(-1), pairs.amax(-1)
    key, order = torch.sort((low << 32) | high, stable=True)
    valid = (key >> 32) != (key & 0xFFFFFFFF)
    key, opposite = key[valid], opposite[order][valid]
    unique, counts = torch.unique_consecutive(key, return_counts=True)
    vertices = torch.stack([unique >> 32, unique & 0xFFFFFFFF], -1)
    start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Edges(vertices, start, opposite)


@dataclass(frozen=True)
class Crossings:
    """Crossings of silhouette edges with lines of pixel centres, before the visibility test.

    edge [N,2]: vertex indices. view, axis [N]: as in Pairs. line [N]: the row (axis 0) or column (axis 1)
    whose centres are crossed. position [N]: coordinate along that line. depth [N]: z/w of the edge at the
    crossing. inner_is_second [N]: whether the object lies on the side of larger coordinates.
    """

    edge: Int[Tensor, "N 2"]
    view: Int[Tensor, " N"]
    axis: Int[Tensor, " N"]
    line: Int[Tensor, " N"]
    position: Float[Tensor, " N"]
    depth: Float[Tensor, " N"]
    inner_is_second: Bool[Tensor, " N"]


@torch.no_grad()
def find_pairs(rast: Float[Tensor, "B H W 4"], clip: Float[Tensor, "B V 4"], edges: Edges) -> Pairs:
    """Find the pixel pairs that a visible silhouette edge crosses.

    If several edges cross a pair, the one whose crossing is farthest from the inner pixel is used.
    """
    height, width = rast.shape[1:3]
    found = find_crossings(clip.detach().double(), edges, (height, width))
    cell = (found.position - 0.5).floor()
    steep = found.axis == 0
    first = torch.where(steep, found.line * width + cell.long(), cell.long() * width + found.line)
    first = first + found.view * height * width
    second = first + torch.where(steep, 1, width)
    inner, outer = (
        torch.where(found.inner_is_second, second, first),
        torch.where(found.inner_is_second, first, second),
    )
    fraction = found.position - 0.5 - cell
    distance = torch.where(found.inner_is_second, 1 - fraction, fraction)

    keep = (cell >= 0) & (cell < torch.where(steep, width, height) - 1)
    keep = keep.nonzero()[:, 0]
    keep = keep[is_edge_visible(rast, inner[keep], outer[keep], found.depth[keep])]
    # The order is by view, axis and first pixel. If a pair has several crossings, the one farthest from the
    # inner pixel comes first.
    keep = keep[torch.sort(distance[keep], descending=True, stable=True).indices]
    key = (2 * found.view + found.axis) * height * width + first % (height * width)
    key, order = torch.sort(key[keep], stable=True)
    is_first = torch.ones_like(key, dtype=torch.bool)
    is_first[1:] = key[1:] != key[:-1]
    keep = keep[order[is_first]]
    return Pairs(inner[keep], outer[keep], found.edge[keep], found.view[keep], found.axis[keep])


def find_crossings(clip: Float[Tensor, "B V 4"], edges: Edges, resolution: tuple[int, int]) -> Crossings:
    """Return all crossings of silhouette edges with pixel rows (steep edges) or columns (flat edges)."""
    view, edge, side = silhouette_edges(clip, edges)
    edge = edges.vertices[edge]
    segment, visible = visible_segments(clip[view[:, None], edge], resolution)
    view, edge, side, segment = view[visible], edge[visible], side[visible], segment[visible]
    start, end = segment.unbind(1)
    extent = (end - start).abs()
    axis = (extent[:, 0] > extent[:, 1]).long()
    # Steep edges cross rows of pixel centres, which are numbered along y. Flat edges cross columns, which are
    # numbered along x.
    along_axis = 1 - axis[:, None]
    start_along, end_along = start.gather(1, along_axis)[:, 0], end.gather(1, along_axis)[:, 0]
    # The interval of lines is half-open, so that a line of pixel centres through the common vertex of two
    # consecutive edges crosses only one of the edges.
    first = (torch.minimum(start_along, end_along) - 0.5).ceil().clamp(min=0)
    stop = (torch.maximum(start_along, end_along) - 0.5).ceil()
    stop = torch.minimum(stop, torch.where(axis == 0, resolution[0], resolution[1]))
    counts = (stop - first).clamp(min=0).long()
    row = torch.arange(len(counts), device=clip.device).repeat_interleave(counts)
    line = first.long()[row] + torch.arange(len(row), device=clip.device) - (counts.cumsum(0) - counts)[row]

    fraction = (line + 0.5 - start_along[row]) / (end_along - start_along)[row]
    depth = start[row, 2] + fraction * (end[row, 2] - start[row, 2])
    normal = edge_normal(clip, view[row], edge[row])
    position = crossing_position(normal, axis[row], line, resolution)
    inner_is_second = side[row] * normal.gather(1, axis[row, None])[:, 0] > 0
    return Crossings(edge[row], view[row], axis[row], line, position, depth, inner_is_second)


def silhouette_edges(
    clip: Float[Tensor, "B V 4"], edges: Edges
) -> tuple[Int[Tensor, " S"], Int[Tensor, " S"], Float[Tensor, " S"]]:
    """Return view, edge and side of the silhouette edges. The side ±1 is the sign of normal · p on the
    object's side.

    An edge is a silhouette if all its faces lie on one side of it. Faces seen exactly edge-on are ignored.
    """
    xyw = clip[..., [0, 1, 3]]
    normal = torch.linalg.cross(xyw[:, edges.vertices[:, 0]], xyw[:, edges.vertices[:, 1]], dim=-1)
    edge_of = torch.arange(len(edges.vertices), device=clip.device).repeat_interleave(edges.start.diff())
    side = (normal[:, edge_of] * xyw[:, edges.opposite]).sum(-1).sign()
    edge_of = edge_of.expand_as(side)
    lowest = side.new_zeros(normal.shape[:2]).scatter_reduce(1, edge_of, side, "amin")
    highest = side.new_zeros(normal.shape[:2]).scatter_reduce(1, edge_of, side, "amax")
    view, edge = ((lowest + highest).abs() == 1).nonzero().unbind(-1)
    return view, edge, (lowest + highest)[view, edge]


def visible_segments(
    ends: Float[Tensor, "S 2 4"], resolution: tuple[int, int]
) -> tuple[Float[Tensor, "S 2 3"], Bool[Tensor, " S"]]:
    """Return x, y (in pixels) and z/w of both end points, and whether a segment is visible. Segments are
    first clipped at the near plane z = −w.
    """
    above = ends[..., 2] + ends[..., 3]
    start, end = ends.unbind(1)
    fraction = (above[:, 0] / (above[:, 0] - above[:, 1]))[:, None]
    intersection = start + fraction * (end - start)
    start, end = (torch.where(above[:, i, None] < 0, intersection, p) for i, p in ((0, start), (1, end)))
    clipped = torch.stack([start, end], 1)
    visible = (above >= 0).any(1) & (clipped[..., 3] > 0).all(1)
    projected = clipped[..., :3] / torch.where(visible[:, None], clipped[..., 3], 1)[..., None]
    height, width = resolution
    x, y = (projected[..., 0] + 1) * width / 2, (projected[..., 1] + 1) * height / 2
    segment = torch.stack([x, y, projected[..., 2]], -1)
    return segment, visible & segment.isfinite().all(-1).all(-1)


def edge_normal(
    clip: Float[Tensor, "B V 4"], view: Int[Tensor, " N"], edge: Int[Tensor, "N 2"]
) -> Float[Tensor, "N 3"]:
    """Return the homogeneous line a × b over (x, y, w) of each edge. At points on this line, normal · (x/w,
    y/w, 1) = 0.
    """
    a, b = clip[view[:, None], edge][..., [0, 1, 3]].unbind(1)
    return torch.linalg.cross(a, b, dim=-1)


def crossing_position(
    normal: Float[Tensor, "N 3"],
    axis: Int[Tensor, " N"],
    line: Int[Tensor, " N"],
    resolution: tuple[int, int],
) -> Float[Tensor, " N"]:
    """Return the position in pixels at which an edge crosses a line of pixel centres.

    For axis 0, this is the x coordinate in row `line`. For axis 1, this is the y coordinate in column `line`.
    """
    height, width = resolution
    steep = axis == 0
    along, across = torch.where(steep, height, width), torch.where(steep, width, height)
    centre = (line + 0.5) * 2 / along - 1
    n_across = torch.where(steep, normal[:, 0], normal[:, 1])
    n_along = torch.where(steep, normal[:, 1], normal[:, 0])
    return (1 - (n_along * centre + normal[:, 2]) / n_across) * across / 2


def is_edge_visible(
    rast: Float[Tensor, "B H W 4"],
    inner: Int[Tensor, " N"],
    outer: Int[Tensor, " N"],
    depth: Float[Tensor, " N"],
) -> Bool[Tensor, " N"]:
    """Return whether an edge at z/w = depth is visible between two pixels.

    The surface at the inner pixel must be nearer than the surface at the outer pixel. The edge must be in
    front of the surface at the outer pixel.
    """
    pixels = rast.detach().reshape(-1, 4)
    z = torch.where(pixels[:, 3] > 0, pixels[:, 2], torch.inf).double()
    return (z[inner] < z[outer]) & (depth < z[outer]) & (depth.abs() <= 1)


def blend_pairs(
    colour: Float[Tensor, "B H W C"], clip: Float[Tensor, "B V 4"], pairs: Pairs
) -> Float[Tensor, "B H W C"]:
    """Blend the pairs by coverage.

    The result is differentiable with respect to colour and clip. A pixel may belong to several pairs. Let a
    be the sum of its horizontal weights and b the sum of its vertical weights. The weight of the pixel's own
    colour is (1 − a)(1 − b). This product is exact at the corner of a horizontal and a vertical silhouette,
    and it is never negative.
    """
    height, width = colour.shape[1:3]
    steep = pairs.axis == 0
    column, row = pairs.inner % width, pairs.inner // width % height
    line, inner_position = torch.where(steep, row, column), torch.where(steep, column, row)
    direction = torch.where(pairs.outer > pairs.inner, 1, -1)
    normal = edge_normal(clip.double(), pairs.view, pairs.edge)
    distance = (
        crossing_position(normal, pairs.axis, line, (height, width)) - inner_position - 0.5
    ) * direction
    inner_changes = (distance < 0.5).detach()
    target, source = (
        torch.where(inner_changes, pairs.inner, pairs.outer),
        torch.where(inner_changes, pairs.outer, pairs.inner),
    )
    weight = torch.where(inner_changes, 0.5 - distance, distance - 0.5)

    flat = colour.reshape(-1, colour.shape[-1])
    target_index = torch.unique(target, return_inverse=True)[1]
    total_weights = weight.new_zeros(len(target), 2).index_put(
        (target_index, pairs.axis), weight, accumulate=True
    )[target_index]
    weight_sum = total_weights.sum(-1)
    # With this factor, the weights of all neighbours of a pixel add up to 1 − (1 − a)(1 − b).
    factor = 1 - total_weights.prod(-1) / torch.where(weight_sum > 0, weight_sum, 1)
    change = (factor * weight).to(colour.dtype)[:, None] * (flat[source] - flat[target])
    return flat.index_add(0, target, change).view_as(colour)
