"""CUDA kernels for marching_tets.compact_topology.

There are four kernels and one synchronisation, in which the host reads the lengths of the three output lists:
crossed edges, faces, and vertices of crossed edges. `padded_topology` needs no synchronisation, because the
caller chooses the lengths. The edges, tets and vertices of the grid are divided into blocks. The rank of an
element that has entries in a list is the number of preceding list entries of its block. The rank of all other
elements is −1. A prefix sum over the blocks gives the offset of each block in the list. The index of an entry
is offset + rank, so the lists are in ascending order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from jaxtyping import Bool, Int
from torch import Tensor
from triton import language as tl

BLOCK = 512
# Number of block counts that are summed at a time.
WIDTH = 4096


@triton.jit
def _corners(simplices, inside, index, mask, K: tl.constexpr):
    """Return two tensors [BLOCK,K]: the corners of each simplex, and 1 for a corner that is inside, otherwise
    0.
    """
    corner = index.to(tl.int64)[:, None] * K + tl.arange(0, K)[None, :]
    vertex = tl.load(simplices + corner, mask=mask[:, None], other=0)
    return vertex, tl.load(inside + vertex, mask=mask[:, None], other=0).to(tl.int32)


@triton.jit
def _rank(amount, ranks, counts, block, BLOCK: tl.constexpr):
    """Store the rank of each element within its block, and the number of list entries of the block.

    amount: the number of list entries of each element.
    """
    count = tl.sum(amount, 0)
    tl.store(counts + block, count)
    if count > 0:
        before = tl.cumsum(amount, 0) - amount
        index = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(ranks + index, tl.where(amount > 0, before, -1).to(tl.int16))


@triton.jit
def _list_index(number, first_block, ranks, starts, rows, BLOCK: tl.constexpr, mask):
    """Return the indices of edges or vertices in their list, which has space for `rows` entries.

    first_block: the index of the first block of edges or vertices.
    """
    index = first_block * BLOCK + number
    start = tl.load(starts + index // BLOCK, mask=mask, other=0)
    row = start + tl.load(ranks + index, mask=mask, other=0)
    # Entries without space are not written. Other lists must not refer to them, because the kernels that
    # follow do not check indices.
    return tl.minimum(row, rows - 1).to(tl.int64)


@triton.jit
def _crossed(edges, inside, used, index, total):
    """Return 1 for each crossed edge (exactly one end inside), otherwise 0. Mark the ends of crossed edges in
    `used`.
    """
    vertex, bit = _corners(edges, inside, index, index < total, 2)
    crossed = (tl.sum(bit, 1) == 1).to(tl.int32)
    # Most blocks have no crossed edge, so the store is skipped for them.
    if tl.max(crossed, 0) > 0:
        tl.store(used + vertex, 1, mask=crossed[:, None] > 0)
    return crossed


@triton.jit
def _triangle_count(tets, inside, index, total):
    """Return the number of triangles of each tet: 1 if one or three corners are inside, 2 if two are inside,
    otherwise 0.
    """
    _, bit = _corners(tets, inside, index, index < total, 4)
    corners = tl.sum(bit, 1)
    return tl.where(corners == 2, 2, corners & 1)


@triton.jit
def _find_crossed(
    inside, edges, tets, used, ranks, counts, edge_count, tet_count, edge_blocks, BLOCK: tl.constexpr
):
    """Count the crossed edges and triangles of each block. Mark the ends of crossed edges in used [V]."""
    block = tl.program_id(0)
    offset = tl.arange(0, BLOCK)
    # In Triton, a variable must have the same type in both branches, so the code of each branch is in a
    # separate function.
    if block < edge_blocks:
        amount = _crossed(edges, inside, used, block * BLOCK + offset, edge_count)
    else:
        amount = _triangle_count(tets, inside, (block - edge_blocks) * BLOCK + offset, tet_count)
    _rank(amount, ranks, counts, block, BLOCK)


@triton.jit
def _find_used(used, ranks, counts, vertex_count, first_block, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    index = block * BLOCK + tl.arange(0, BLOCK)
    marked = tl.load(used + index, mask=index < vertex_count, other=0).to(tl.int32)
    _rank(marked, ranks, counts, first_block + block, BLOCK)


@triton.jit
def _sum_blocks(counts, starts, totals, edge_blocks, tet_blocks, vertex_blocks, WIDTH: tl.constexpr):
    """Compute the offset of each block in its list, and the lengths of the three lists. Grid: one program per
    list.
    """
    list_number = tl.program_id(0)
    first, blocks = 0, edge_blocks
    if list_number == 1:
        first, blocks = edge_blocks, tet_blocks
    if list_number == 2:
        first, blocks = edge_blocks + tet_blocks, vertex_blocks
    total = 0
    for begin in range(0, blocks, WIDTH):
        block = begin + tl.arange(0, WIDTH)
        count = tl.load(counts + first + block, mask=block < blocks, other=0)
        tl.store(starts + first + block, total + tl.cumsum(count, 0) - count, mask=block < blocks)
        total += tl.sum(count, 0)
    tl.store(totals + list_number, total)


@triton.jit
def _write_ends(
    inside, edges, index, listed, row, ends, vertex_block, ranks, starts, vertex_rows, BLOCK: tl.constexpr
):
    vertex, _ = _corners(edges, inside, index, listed, 2)
    end = _list_index(vertex, vertex_block, ranks, starts, vertex_rows, BLOCK, listed[:, None])
    tl.store(ends + row[:, None] * 2 + tl.arange(0, 2)[None, :], end, mask=listed[:, None])


@triton.jit
def _write_faces(
    inside, tets, tet_edges, triangles, index, listed, row, faces, ranks, starts, end_rows, face_rows,
    BLOCK: tl.constexpr,
):  # fmt: skip
    _, bit = _corners(tets, inside, index, listed, 4)
    pattern = tl.sum(bit << tl.arange(0, 4)[None, :], 1)
    for corner in tl.static_range(6):
        slot = tl.load(triangles + pattern * 6 + corner, mask=listed, other=-1)
        mask = (slot >= 0) & (row + corner // 3 < face_rows)
        edge = tl.load(tet_edges + index.to(tl.int64) * 6 + slot, mask=mask, other=0)
        crossing = _list_index(edge, 0, ranks, starts, end_rows, BLOCK, mask)
        tl.store(faces + row * 3 + corner, crossing, mask=mask)


@triton.jit(do_not_specialize=["end_rows", "face_rows", "vertex_rows"])
def _write(
    inside, edges, tets, tet_edges, triangles, ranks, counts, starts, ends, faces, vertices,
    edge_blocks, vertex_block, end_rows, face_rows, vertex_rows, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the lists: ends [N,2], faces [M,3] and vertices [U], all int64.

    end_rows, face_rows, vertex_rows: N, M and U. Entries beyond these numbers are not written.
    """
    block = tl.program_id(0)
    if tl.load(counts + block) > 0:
        offset = tl.arange(0, BLOCK)
        rank = tl.load(ranks + block.to(tl.int64) * BLOCK + offset)
        listed = rank >= 0
        row = (tl.load(starts + block) + rank).to(tl.int64)
        if block < edge_blocks:
            index, listed = block * BLOCK + offset, listed & (row < end_rows)
            _write_ends(
                inside, edges, index, listed, row, ends, vertex_block, ranks, starts, vertex_rows, BLOCK
            )
        elif block < vertex_block:
            index = (block - edge_blocks) * BLOCK + offset
            _write_faces(
                inside, tets, tet_edges, triangles, index, listed, row, faces, ranks, starts,
                end_rows, face_rows, BLOCK,
            )  # fmt: skip
        else:
            index = (block - vertex_block) * BLOCK + offset
            tl.store(vertices + row, index.to(tl.int64), mask=listed & (row < vertex_rows))


@triton.jit(do_not_specialize=["end_rows", "face_rows", "vertex_rows"])
def _pad(totals, ends, faces, vertices, end_rows, face_rows, vertex_rows, BLOCK: tl.constexpr):
    """Fill the rows after the entries of each list. Grid: blocks of the longest list.

    The additional edges repeat the last crossed edge. The additional vertices are different vertices of the
    grid, and the corners of an additional face are one vertex of the surface. Different rows get different
    vertices where possible, because many atomic additions to one address are slow.
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    found = tl.minimum(tl.load(totals), end_rows)
    last = 2 * tl.maximum(found - 1, 0).to(tl.int64) + tl.arange(0, 2)
    end = tl.load(ends + last, mask=found > 0, other=0)
    unused = (index >= found) & (index < end_rows)
    tl.store(ends + 2 * index[:, None] + tl.arange(0, 2)[None, :], end[None, :], mask=unused[:, None])
    unused = (index >= tl.load(totals + 1)) & (index < face_rows)
    for corner in tl.static_range(3):
        tl.store(faces + 3 * index + corner, index % tl.maximum(found, 1), mask=unused)
    unused = (index >= tl.load(totals + 2)) & (index < vertex_rows)
    tl.store(vertices + index, index, mask=unused)


@dataclass(frozen=True)
class _Lists:
    """The inputs of `_write`, and the lengths of the three lists.

    inputs: the tensors of the grid, and ranks, counts and starts of each block. totals [3] int32: the numbers
    of crossed edges, faces and vertices of crossed edges.
    """

    inputs: tuple[Tensor, ...]
    totals: Int[Tensor, " 3"]
    blocks: int
    edge_blocks: int
    vertex_block: int

    def write(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return ends, faces and vertices with the given numbers of rows."""
        end_rows, face_rows, vertex_rows = rows
        device = self.totals.device
        ends = torch.empty(end_rows, 2, dtype=torch.int64, device=device)
        faces = torch.empty(face_rows, 3, dtype=torch.int64, device=device)
        vertices = torch.empty(vertex_rows, dtype=torch.int64, device=device)
        if end_rows:
            with torch.cuda.device_of(self.totals):
                _write[(self.blocks,)](
                    *self.inputs, ends, faces, vertices, self.edge_blocks, self.vertex_block, *rows, BLOCK
                )
        return ends, faces, vertices


def _find_lists(
    inside: Bool[Tensor, " V"],
    tets: Int[Tensor, "T 4"],
    edges: Int[Tensor, "E 2"],
    tet_edges: Int[Tensor, "T 6"],
    triangles: Int[Tensor, "16 2 3"],
) -> _Lists:
    """Count the entries of the three lists."""
    device = inside.device
    sides = inside.contiguous().view(torch.uint8)
    edges, tets, tet_edges = edges.contiguous(), tets.contiguous(), tet_edges.contiguous()
    edge_blocks, tet_blocks, vertex_blocks = (triton.cdiv(len(of), BLOCK) for of in (edges, tets, inside))
    vertex_block = edge_blocks + tet_blocks
    blocks = vertex_block + vertex_blocks
    used = torch.zeros_like(sides)
    ranks = torch.empty(blocks * BLOCK, dtype=torch.int16, device=device)
    counts, starts = (torch.empty(blocks, dtype=torch.int32, device=device) for _ in range(2))
    totals = torch.empty(3, dtype=torch.int32, device=device)
    with torch.cuda.device_of(totals):
        _find_crossed[(vertex_block,)](
            sides, edges, tets, used, ranks, counts, len(edges), len(tets), edge_blocks, BLOCK
        )
        _find_used[(vertex_blocks,)](used, ranks, counts, len(inside), vertex_block, BLOCK)
        _sum_blocks[(3,)](counts, starts, totals, edge_blocks, tet_blocks, vertex_blocks, WIDTH, num_warps=8)
    inputs = sides, edges, tets, tet_edges, triangles, ranks, counts, starts
    return _Lists(inputs, totals, blocks, edge_blocks, vertex_block)


def topology(
    inside: Bool[Tensor, " V"],
    tets: Int[Tensor, "T 4"],
    edges: Int[Tensor, "E 2"],
    tet_edges: Int[Tensor, "T 6"],
    triangles: Int[Tensor, "16 2 3"],
) -> tuple[Int[Tensor, " U"], Int[Tensor, "N 2"], Int[Tensor, "M 3"]]:
    """Return the vertices of crossed edges, the ends of each crossed edge as indices into these vertices, and
    the faces.

    triangles: up to two triangles for each sign pattern of a tet, as indices of the tet's edges (see
    `_triangle_table` in marching_tets).
    """
    lists = _find_lists(inside, tets, edges, tet_edges, triangles)
    # This is the only synchronisation. The host needs these lengths to allocate the outputs.
    ends, faces, vertices = lists.write(lists.totals.tolist())
    return vertices, ends, faces


def padded_topology(
    inside: Bool[Tensor, " V"],
    tets: Int[Tensor, "T 4"],
    edges: Int[Tensor, "E 2"],
    tet_edges: Int[Tensor, "T 6"],
    triangles: Int[Tensor, "16 2 3"],
    rows: tuple[int, int, int],
) -> tuple[Int[Tensor, " U"], Int[Tensor, "N 2"], Int[Tensor, "M 3"], Int[Tensor, " 3"]]:
    """Return the result of `topology` with N, M, U = rows, and the actual numbers of entries [3] int32 in
    this order. The host does not wait for the GPU.

    rows: all numbers are positive, and U is at most V. If a list has fewer entries than rows, `_pad` fills
    the other rows with valid indices. The additional faces have no area. If a list has more entries than
    rows, the result contains only a part of the surface. All indices are valid in any case.
    """
    lists = _find_lists(inside, tets, edges, tet_edges, triangles)
    ends, faces, vertices = lists.write(rows)
    with torch.cuda.device_of(faces):
        _pad[(triton.cdiv(max(rows), BLOCK),)](lists.totals, ends, faces, vertices, *rows, BLOCK)
    return vertices, ends, faces, lists.totals
