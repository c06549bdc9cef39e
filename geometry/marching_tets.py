"""Marching tetrahedra on a fixed grid with precomputed unique edges.

The input is a signed distance s at each grid vertex, with s < 0 inside. An edge whose ends differ in the sign
of s is a crossed edge. It gets a surface vertex at the point where the linear interpolation of s is zero.
Each tet that the surface crosses gives one or two triangles. Their corners are counter-clockwise as seen from
outside.
"""

from functools import cache

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from geometry.tet_grid import TET_EDGES
from render.kernels.available import triton_runs_on


class EmptySurfaceError(ValueError):
    """Error for a field that has the same sign at all vertices, so that its surface has no triangles."""


def check_not_empty(faces: int) -> None:
    """Raise EmptySurfaceError if the number of triangles is 0."""
    if faces == 0:
        raise EmptySurfaceError(
            "the surface vanished: try a lower guidance_weight, a larger start shape or another seed"
        )


def _triangle_table() -> list[list[int]]:
    """Return six edge slots, the corners of up to two triangles, for each of the 16 sign patterns of a tet.
    Unused slots are −1.

    Bit v of a pattern is 1 if vertex v is inside. An edge slot is an index into TET_EDGES.

    The orientation of the triangles is computed for a reference tet of positive volume, so the table is valid
    only for tets of positive volume.
    """
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    slot = {frozenset(edge): number for number, edge in enumerate(TET_EDGES)}
    table = []
    for pattern in range(16):
        inside = [v for v in range(4) if pattern >> v & 1]
        outside = [v for v in range(4) if not pattern >> v & 1]
        if not inside or not outside:
            table.append([-1] * 6)
            continue
        if len(inside) == 2:
            (a, b), (c, d) = inside, outside
            ring = [(a, c), (a, d), (b, d), (b, c)]
        else:
            ring = [(a, b) for a in inside for b in outside]
        points = torch.stack([corners[list(edge)].mean(0) for edge in ring])
        normal = torch.linalg.cross(points[1] - points[0], points[2] - points[0], dim=-1)
        if (normal * (corners[outside].mean(0) - corners[inside].mean(0))).sum() < 0:
            ring.reverse()
        slots = [slot[frozenset(edge)] for edge in ring]
        table.append(slots[:3] + ([slots[0], *slots[2:]] if len(slots) == 4 else [-1] * 3))
    return table


@cache
def _triangles(device: torch.device) -> Int[Tensor, "16 2 3"]:
    """Return the result of _triangle_table on a device."""
    return torch.tensor(_triangle_table(), device=device).reshape(16, 2, 3)


@cache
def _corner_numbers(device: torch.device) -> UInt8[Tensor, "4"]:
    return torch.arange(4, dtype=torch.uint8, device=device)


def compact_topology(
    inside: Bool[Tensor, " V"],
    tets: Int[Tensor, "T 4"],
    edges: Int[Tensor, "E 2"],
    tet_edges: Int[Tensor, "T 6"],
) -> tuple[Int[Tensor, " U"], Int[Tensor, "N 2"], Int[Tensor, "M 3"]]:
    """Return the vertices of crossed edges in ascending order, and the surface topology for these vertices.

    The result is (vertices [U], ends [N,2] of each crossed edge as indices into vertices, faces [M,3] as
    indices of crossed edges). All three tensors are int64 and identical on every device.
    """
    if triton_runs_on(inside.device):
        from geometry.kernels import marching_tets_triton

        return marching_tets_triton.topology(inside, tets, edges, tet_edges, _triangles(inside.device))
    return compact_topology_torch(inside, tets, edges, tet_edges)


def padded_topology(
    inside: Bool[Tensor, " V"],
    tets: Int[Tensor, "T 4"],
    edges: Int[Tensor, "E 2"],
    tet_edges: Int[Tensor, "T 6"],
    rows: tuple[int, int, int],
) -> tuple[Int[Tensor, " U"], Int[Tensor, "N 2"], Int[Tensor, "M 3"], Int[Tensor, " 3"]]:
    """Return the result of `compact_topology` with N, M, U = rows, and the actual N, M, U, on a CUDA device
    on which Triton works.

    The host does not wait for the GPU. See `marching_tets_triton.padded_topology`.
    """
    from geometry.kernels import marching_tets_triton

    return marching_tets_triton.padded_topology(
        inside, tets, edges, tet_edges, _triangles(inside.device), rows
    )


def compact_topology_torch(
    inside: Bool[Tensor, " V"],
    tets: Int[Tensor, "T 4"],
    edges: Int[Tensor, "E 2"],
    tet_edges: Int[Tensor, "T 6"],
) -> tuple[Int[Tensor, " U"], Int[Tensor, "N 2"], Int[Tensor, "M 3"]]:
    """Return the result of `compact_topology`, computed with torch on any device."""
    ends, faces = surface_topology(inside, tets, edges, tet_edges)
    used = torch.zeros(len(inside), dtype=torch.bool, device=ends.device)
    used[ends.reshape(-1)] = True
    vertices = used.nonzero()[:, 0]
    new_index = torch.empty(len(inside), dtype=torch.int64, device=ends.device)
    new_index[vertices] = torch.arange(len(vertices), device=ends.device)
    return vertices, new_index[ends], faces


def surface_topology(
    inside: Bool[Tensor, " V"],
    tets: Int[Tensor, "T 4"],
    edges: Int[Tensor, "E 2"],
    tet_edges: Int[Tensor, "T 6"],
) -> tuple[Int[Tensor, "N 2"], Int[Tensor, "M 3"]]:
    """Return the ends [N,2] of each crossed edge, and the faces [M,3] as indices of crossed edges."""
    crossing = (_corners_inside(inside, edges) == 1).nonzero()[:, 0]
    crossing_of_edge = torch.empty(len(edges), dtype=torch.int64, device=edges.device)
    crossing_of_edge[crossing] = torch.arange(len(crossing), device=edges.device)
    # The condition selects tets with 1 to 3 corners inside. It excludes tets with 0 corners inside, because
    # the uint8 result of 0 − 1 is 255.
    active = (_corners_inside(inside, tets) - 1 < 3).nonzero()[:, 0]
    bits = inside[tets.index_select(0, active)].to(torch.uint8) << _corner_numbers(tets.device)
    slots = _triangles(tets.device).index_select(0, bits.sum(-1))  # [A, 2, 3]
    triangle = (slots[:, :, 0] >= 0).nonzero()
    edge = tet_edges[active[triangle[:, 0], None], slots[triangle[:, 0], triangle[:, 1]]]
    return edges.index_select(0, crossing), crossing_of_edge[edge]


def _corners_inside(inside: Bool[Tensor, " V"], simplices: Int[Tensor, "S K"]) -> UInt8[Tensor, " S"]:
    """Return how many corners of each edge or tet are inside."""
    bits = inside.to(torch.uint8)
    # index_select is four times faster than indexing here.
    return sum(bits.index_select(0, column) for column in simplices.unbind(-1))


def crossing_points(
    v_pos: Float[Tensor, "V 3"], sdf: Float[Tensor, " V"], ends: Int[Tensor, "N 2"]
) -> Float[Tensor, "N 3"]:
    """Return the zeros of sdf on edges whose ends differ in the sign of sdf.

    The result is differentiable with respect to v_pos and sdf.
    """
    start, end = ends.unbind(-1)
    # index_select is used because its backward pass uses additions. The backward pass of indexing uses a
    # sort, which is slower.
    s_start, s_end = sdf.index_select(0, start), sdf.index_select(0, end)
    # The two values differ in sign, so the difference is never zero.
    fraction = (s_start / (s_start - s_end))[:, None]
    v_start, v_end = v_pos.index_select(0, start), v_pos.index_select(0, end)
    return v_start + fraction * (v_end - v_start)


def marching_tetrahedra(
    v_pos: Float[Tensor, "V 3"],
    sdf: Float[Tensor, " V"],
    tets: Int[Tensor, "T 4"],
    edges: Int[Tensor, "E 2"],
    tet_edges: Int[Tensor, "T 6"],
) -> tuple[Float[Tensor, "N 3"], Int[Tensor, "M 3"]]:
    """Return vertices [N,3] and faces [M,3] of the zero level set of sdf.

    The vertices are differentiable with respect to v_pos and sdf. N and M are 0 if sdf has the same sign at
    all vertices. The tets must have positive volume. The surface is closed except at the boundary of the
    grid.
    """
    ends, faces = surface_topology(sdf < 0, tets, edges, tet_edges)
    return crossing_points(v_pos, sdf, ends), faces
