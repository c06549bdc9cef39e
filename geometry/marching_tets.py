"""Marching tetrahedra on a fixed grid with precomputed unique edges.

A surface vertex sits on each edge whose ends differ in sign, where the linear interpolation of s is zero;
one or two triangles a tet join them. s < 0 is inside; faces are counter-clockwise from outside.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geometry.tet_grid import TET_EDGES


def _triangle_table() -> list[list[int]]:
    """For each of the 16 sign patterns (bit v: vertex v inside) two triangles as six edge slots, −1 unused.

    Written for tets of positive volume: an edge slot's midpoint in the reference tet gives the orientation.
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


TRIANGLE_TABLE = _triangle_table()


def marching_tetrahedra(
    v_pos: Float[Tensor, "V 3"],
    sdf: Float[Tensor, " V"],
    tets: Int[Tensor, "T 4"],
    edges: Int[Tensor, "E 2"],
    tet_edges: Int[Tensor, "T 6"],
) -> tuple[Float[Tensor, "N 3"], Int[Tensor, "M 3"]]:
    """The zero surface, differentiable with respect to v_pos and sdf; N = M = 0 where no sign changes.

    The tets must have positive volume. The surface is closed wherever it does not meet the grid's boundary.
    """
    inside = sdf < 0
    starts, ends = edges.unbind(-1)
    # index_select is four times faster here than indexing.
    crossing = (inside.index_select(0, starts) != inside.index_select(0, ends)).nonzero()[:, 0]
    start, end = starts[crossing], ends[crossing]
    s_start, s_end = sdf[start], sdf[end]
    # One of the two is negative and the other is not: the difference is never zero.
    fraction = (s_start / (s_start - s_end))[:, None]
    verts = v_pos[start] + fraction * (v_pos[end] - v_pos[start])
    vertex_of_edge = torch.empty(len(edges), dtype=torch.int32, device=edges.device)
    vertex_of_edge[crossing] = torch.arange(len(crossing), dtype=torch.int32, device=edges.device)

    bits = inside.to(torch.uint8)
    pattern = sum(bits.index_select(0, tets[:, corner]) << corner for corner in range(4))
    active = ((pattern > 0) & (pattern < 15)).nonzero()[:, 0]
    table = torch.tensor(TRIANGLE_TABLE, device=tets.device)
    slots = table[pattern[active].long()].reshape(-1, 2, 3)
    triangle = (slots[:, :, 0] >= 0).nonzero()
    owner = active[triangle[:, 0]]
    edge = tet_edges[owner[:, None], slots[triangle[:, 0], triangle[:, 1]]]
    return verts, vertex_of_edge[edge].long()
