"""Tetrahedral grids that fill a cube. A grid is a body-centred cubic lattice or is read from an `.npz` file.

The lattice has n³ cells. Its vertices are the (n+1)³ cell corners and the n³ cell centres. Each inner face
between two cells gives four tets (each with the centres of both cells and one edge of the face). Each face on
the boundary of the cube gives two tets (each with the centre of the cell and three corners of the face). All
12 n³ tets have the volume (size / n)³ / 12, where size is the side of the cube.
"""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.read_errors import FileError, reading

# Vertex pairs of the six edges of a tet, in the order of `tet_edges`.
TET_EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
# Arrays with a higher compression ratio than this are rejected, because the maximum ratio of the deflate
# method is about 1000.
MOST_COMPRESSED = 1100


@dataclass(frozen=True)
class TetGrid:
    """V vertices, T tets of positive volume and E unique edges. tet_edges follows the order of TET_EDGES.

    resolution is the nominal resolution, as for published grids (64, 128, 256). The largest vertex offset is
    1 / resolution.
    """

    v_pos: Float[Tensor, "V 3"]
    tets: Int[Tensor, "T 4"]
    edges: Int[Tensor, "E 2"]
    tet_edges: Int[Tensor, "T 6"]
    resolution: int


def cells_per_axis(resolution: int) -> int:
    """Return the number of cells per axis: 26, 51 and 102 for the nominal resolutions 64, 128 and 256.

    With this number of cells, the lattice has about as many vertices as the published grid of the same
    resolution.
    """
    return max(2, round(resolution * 0.4))


def make_tet_grid(resolution: int, scale: float) -> TetGrid:
    """Return the lattice for a nominal resolution.

    The lattice fills [−0.5, 0.5]³ · scale. The tensors are on the CPU, with int32 indices.
    """
    n = cells_per_axis(resolution)
    # Lattice coordinates are multiplied by two, so they are integers from 0 to 2n. Corners have even
    # coordinates, and centres have odd ones.
    corners = _lattice(np.arange(0, 2 * n + 1, 2))
    centres = _lattice(np.arange(1, 2 * n, 2))
    doubled = np.concatenate([corners, centres])
    tets = np.concatenate([_axis_tets(n, axis) for axis in range(3)])
    edges, tet_edges = _lattice_edges(doubled, tets, n)
    v_pos = (doubled.astype(np.float32) / np.float32(2 * n) - np.float32(0.5)) * np.float32(scale)
    return TetGrid(
        torch.from_numpy(v_pos),
        torch.from_numpy(tets),
        torch.from_numpy(edges),
        torch.from_numpy(tet_edges),
        resolution,
    )


def _lattice(ticks: np.ndarray) -> np.ndarray:
    """Return all points of a cubic lattice, [len(ticks)³, 3] int32.

    x varies fastest, so that consecutive points use adjacent table rows of the hash encoding.
    """
    z, y, x = np.meshgrid(ticks, ticks, ticks, indexing="ij")
    return np.stack([x, y, z], -1).reshape(-1, 3).astype(np.int32)


def _axis_tets(n: int, axis: int) -> np.ndarray:
    """Return the tets at all cell faces perpendicular to `axis`, [4 n³, 4] int32."""
    corner_step = np.roll([1, n + 1, (n + 1) ** 2], -axis)  # strides along `axis` and the next two axes
    centre_step = np.roll([1, n, n * n], -axis)
    i, j, k = (part.reshape(-1).astype(np.int32) for part in np.indices((n + 1, n, n)))
    base = (i * corner_step[0] + j * corner_step[1] + k * corner_step[2]).astype(np.int32)
    ring = [base + offset for offset in _ring(corner_step)]  # counter-clockwise as seen from +axis
    above = (n + 1) ** 3 + i * centre_step[0] + j * centre_step[1] + k * centre_step[2]
    below = above - centre_step[0]
    inner, floor, ceiling = (i > 0) & (i < n), i == 0, i == n
    tets = [
        np.stack([ring[e][inner], ring[(e + 1) % 4][inner], below[inner], above[inner]], -1) for e in range(4)
    ]
    for a, b, c in ((0, 1, 2), (0, 2, 3)):
        tets.append(np.stack([ring[a][floor], ring[b][floor], ring[c][floor], above[floor]], -1))
        tets.append(np.stack([ring[a][ceiling], ring[c][ceiling], ring[b][ceiling], below[ceiling]], -1))
    return np.concatenate(tets).astype(np.int32)


def _ring(step: np.ndarray) -> tuple[int, int, int, int]:
    """Return the index offsets of a face's corners, counter-clockwise as seen from the positive end of the
    axis that is perpendicular to the face.
    """
    return 0, int(step[1]), int(step[1] + step[2]), int(step[2])


def _lattice_edges(doubled: np.ndarray, tets: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the unique edges of the lattice, smaller vertex first, and the edges of each tet.

    The midpoint of an edge is unique, so it is used as the edge's key, and no sorting is needed.
    """
    size = 4 * n + 1  # the sum of two doubled coordinates is in 0 … 4n
    used = np.flatnonzero(_is_midpoint(n))
    number = np.full(size**3, -1, dtype=np.int32)
    number[used] = np.arange(len(used), dtype=np.int32)
    key = doubled @ np.array([1, size, size * size], dtype=np.int32)
    # torch is used here because it uses all cores and has no slow path for int32 indices.
    number, corners = torch.from_numpy(number), torch.from_numpy(tets).view(-1)
    corner_keys = torch.from_numpy(key).index_select(0, corners).view(-1, 4)
    tet_edges = torch.empty((len(tets), 6), dtype=torch.int32)
    for slot, (a, b) in enumerate(TET_EDGES):
        tet_edges[:, slot] = number.index_select(0, corner_keys[:, a] + corner_keys[:, b])
    ends = _edge_ends(np.stack(np.unravel_index(used, (size,) * 3)[::-1]).astype(np.int32), n)
    vertex = np.empty((2 * n + 1) ** 3, dtype=np.int32)
    steps = np.array([1, 2 * n + 1, (2 * n + 1) ** 2], dtype=np.int32)
    vertex[doubled @ steps] = np.arange(len(doubled), dtype=np.int32)
    return np.stack([vertex[steps @ end] for end in ends], -1), tet_edges.numpy()


def _is_midpoint(n: int) -> np.ndarray:
    """Return which sums of two doubled coordinates are the sums of the ends of an edge, [4n + 1]³ bool.

    If all coordinates of the sum are odd, the edge joins a corner and a centre. If all are even, one or two
    coordinates of the midpoint are odd: one on an edge between corners, and two on an edge between centres or
    on the diagonal of a face of the cube.
    """
    total = np.arange(4 * n + 1)
    odd, halves = total % 2 == 1, total // 2 % 2
    odd_halves = halves[:, None, None] + halves[:, None] + halves
    even = ~odd[:, None, None] & ~odd[:, None] & ~odd
    return odd[:, None, None] & odd[:, None] & odd | even & (odd_halves > 0) & (odd_halves < 3)


def _edge_ends(total: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the doubled coordinates of the smaller and the larger vertex of each edge, [3, E] int32.

    total: the sums of the doubled coordinates of both ends, [3, E].
    """
    half = total >> 1
    odd = half & 1
    two_odd = odd.sum(0, dtype=np.int32) == 2
    on_boundary = two_odd & ((half == 0) | (half == 2 * n)).any(0)
    # Half of the vector from the smaller to the larger vertex, for edges between two corners or two centres.
    step = odd ^ (two_odd & ~on_boundary)
    # A corner has even coordinates, so the remainder by 4 is 1 where the centre's coordinate is larger, and 3
    # where it is smaller.
    from_corner = total[0] & 1 == 1
    smaller = np.where(from_corner, (total - 2 + (total & 3)) >> 1, half - step)
    return smaller, total - smaller


def edge_table(tets: Int[Tensor, "T 4"]) -> tuple[Int[Tensor, "E 2"], Int[Tensor, "T 6"]]:
    """Return the unique edges of tets, smaller vertex first, and the edge indices of each tet (see
    TET_EDGES).
    """
    pairs = tets.long()[:, torch.tensor(TET_EDGES, device=tets.device)]  # [T, 6, 2]
    low, high = pairs.amin(-1), pairs.amax(-1)
    count = int(tets.max()) + 1
    keys, ids = torch.unique((low * count + high).reshape(-1), return_inverse=True)
    edges = torch.stack([torch.div(keys, count, rounding_mode="floor"), keys % count], -1)
    return edges.int(), ids.reshape(-1, 6).int()


def tet_volumes(v_pos: Float[Tensor, "V 3"], tets: Int[Tensor, "T 4"]) -> Float[Tensor, " T"]:
    """Return the signed volumes (b − a) × (c − a) · (d − a) / 6 of tets with the corners a, b, c, d."""
    a, b, c, d = (v_pos[tets[:, corner]] for corner in range(4))
    return (torch.linalg.cross(b - a, c - a, dim=-1) * (d - a)).sum(-1) / 6


def load_tet_grid(path: str | Path, scale: float, resolution: int) -> TetGrid:
    """Load a grid from an `.npz` file with `vertices` [V,3], which fill [−0.5, 0.5]³, and `indices` [T,4].

    Tets of negative volume are reoriented. Raises FileNotFoundError or ValueError. The message contains the
    file and the fault.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"tet_grid_file: there is no file {path}")
    with reading(path, "tet_grid_file", "an .npz with `vertices` and `indices`"):
        with zipfile.ZipFile(path) as archive:
            vertices, indices = _read_array(archive, "vertices"), _read_array(archive, "indices")
        if fault := _grid_fault(vertices, indices):
            raise FileError(fault)
    # The array is converted to C order, because the kernels require it.
    v_pos = torch.from_numpy(vertices.astype(np.float32, order="C")) * scale
    tets = torch.from_numpy(indices.astype(np.int32))
    negative = tet_volumes(v_pos, tets) < 0
    tets[negative] = tets[negative][:, [0, 1, 3, 2]]
    edges, tet_edges = edge_table(tets)
    return TetGrid(v_pos, tets, edges, tet_edges, resolution)


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read an array of an .npz file. Pickles and arrays that are much larger than the file are rejected."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = read_header[version](file)
        if math.prod(shape) * dtype.itemsize > min(entry.file_size, MOST_COMPRESSED * entry.compress_size):
            raise FileError(f"`{name}` has the shape {list(shape)}, and the file holds less than that")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _grid_fault(vertices: np.ndarray, indices: np.ndarray) -> str | None:
    if vertices.ndim != 2 or vertices.shape[1] != 3 or not np.issubdtype(vertices.dtype, np.floating):
        return f"`vertices` must be floats of shape [V, 3], not {vertices.dtype} {list(vertices.shape)}"
    if indices.ndim != 2 or indices.shape[1] != 4 or not np.issubdtype(indices.dtype, np.integer):
        return f"`indices` must be integers of shape [T, 4], not {indices.dtype} {list(indices.shape)}"
    if len(indices) == 0:
        return "it holds no tetrahedra"
    if not np.isfinite(vertices).all():
        return "`vertices` holds NaN or infinity"
    if indices.min() < 0 or indices.max() >= len(vertices):
        return f"`indices` must lie in 0 … {len(vertices) - 1}, not {indices.min()} … {indices.max()}"
    return None
