"""DMTet (Shen et al. 2021). The mesh is the zero level set of a signed distance field on a tetrahedral
grid.
"""

import math

import torch
from jaxtyping import Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from geometry.marching_tets import check_not_empty, compact_topology, crossing_points, padded_topology
from geometry.pending_mesh import PendingMesh, TopologySpace
from geometry.sdf_network import SdfNetwork
from geometry.tet_grid import TetGrid, cells_per_axis, load_tet_grid, make_tet_grid
from render.async_copy import AsyncCopy
from render.encoding.hash_grid import HashGrid, PrecomputedEncoding
from render.kernels.available import triton_available, triton_runs_on
from render.mesh import Mesh, make_mesh


@dataclass(frozen=True)
class GeometryConfig:
    """Config section of the tetrahedral grid and its field."""

    dmtet_grid: int = Field(
        64,
        ge=5,
        le=512,
        description="resolution of the tetrahedral grid, named like the published grids 64, 128, 256",
    )
    mesh_scale: float = Field(2.1, gt=0, description="side of the cube that the grid fills, world units")
    tet_grid_file: str | None = Field(
        None,
        description=".npz file with vertices [V,3] in [-0.5, 0.5] and indices [T,4], instead of the lattice",
    )
    hash_n_levels: int = Field(16, ge=1, le=32, description="levels of the hash encoding")
    hash_log2_hashmap_size: int = Field(
        19, ge=4, le=24, description="log2 of the number of entries per level"
    )
    hash_max_resolution: int = Field(4096, ge=16, description="cells per axis of the finest level")
    detail_band: float | None = Field(
        None,
        ge=0,
        description="largest distance of the surface from the start shape, in grid cells; null: 0.25 if "
        "coarse_iter is 400 or less, so that only detail is added, otherwise no limit",
    )


class DMTet(nn.Module):
    """A signed distance field on a fixed tetrahedral grid.

    `mesh()` extracts the surface. The mesh is differentiable with respect to all parameters. A grid vertex is
    moved by tanh(d) / resolution along each axis (world units), where d is the raw offset from the network
    and resolution is the nominal grid resolution (64, 128, 256). Vertices on the boundary of the grid always
    count as outside the surface, so the surface is always closed. Move the module to its device before the
    first call of mesh(). Otherwise, the encoding of the vertices is computed again for the new device.
    """

    def __init__(self, config: GeometryConfig, generator: torch.Generator | None = None):
        super().__init__()
        grid = _grid(config)
        self.resolution = grid.resolution
        for name in ("v_pos", "tets", "edges", "tet_edges"):
            self.register_buffer(name, getattr(grid, name), persistent=False)
        low, high = grid.v_pos.amin(0), grid.v_pos.amax(0)
        margin = 1e-4 * (high - low)
        on_wall = ((grid.v_pos <= low + margin) | (grid.v_pos >= high - margin)).any(-1)
        self.register_buffer("on_wall", on_wall, persistent=False)
        # Negative field values on the boundary of the grid are replaced by this positive distance, so that
        # the surface stays closed and lies in the outermost cells there. The edge of a nominal cell is
        # mesh_scale / dmtet_grid, and the distance is half of it.
        self.wall_distance = 0.5 * config.mesh_scale / config.dmtet_grid
        encoding = HashGrid(
            low,
            high,
            n_levels=config.hash_n_levels,
            log2_hashmap_size=config.hash_log2_hashmap_size,
            max_resolution=config.hash_max_resolution,
            generator=generator,
        )
        self.network = SdfNetwork(encoding, generator=generator)
        self.register_buffer("start", None, persistent=False)
        self.band = math.inf
        # The largest offset of a vertex along each axis, in world units.
        self.reach = 1 / self.resolution
        self._encoding: PrecomputedEncoding | None = None
        self._space = TopologySpace((len(self.edges), 2 * len(self.tets), len(self.v_pos)))

    def field(
        self, vertices: Int[Tensor, " N"] | None = None, encoded: Float[Tensor, "V W"] | None = None
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        """Return the signed distance [N] and the moved position [N,3] of the grid vertices.

        The distance is the output of the network, without the corrections of `_closed`.

        vertices: indices of the vertices to evaluate, or None for all vertices. encoded: the encoding of all
        V grid vertices, if it is already computed.
        """
        sdf, offset = self.network(self._points(), vertices, encoded)
        return sdf, _rows(self.v_pos, vertices) + offset.tanh() * self.reach

    def mesh(self) -> Mesh:
        """Return the zero level set with smooth normals.

        The topology follows from the signs of the field at all vertices. The positions depend only on the
        ends of the edges that the surface crosses, so the field is evaluated with gradients only at these
        vertices. This gives the same gradient as an evaluation at all vertices, in a tenth of the time.

        Raises EmptySurfaceError if the field has the same sign at all vertices.
        """
        encoded, everywhere = self._everywhere()
        vertices, ends, faces = compact_topology(everywhere < 0, self.tets, self.edges, self.tet_edges)
        check_not_empty(len(faces))
        self._space.update((len(ends), len(faces), len(vertices)))
        return make_mesh(self.crossings(everywhere, vertices, ends, encoded), faces)

    def pending_mesh(self) -> PendingMesh:
        """Return the mesh of `mesh()`. On a GPU, the host does not wait for the size of the mesh.

        The first call waits, because the space for the mesh follows from the size in an earlier call.
        """
        rows = self._space.rows
        if rows is None or not triton_runs_on(self.v_pos.device):
            return PendingMesh(self.mesh())
        encoded, everywhere = self._everywhere()
        tables = self.tets, self.edges, self.tet_edges
        vertices, ends, faces, lengths = padded_topology(everywhere < 0, *tables, rows)
        lengths = AsyncCopy(lengths)
        mesh = make_mesh(self.crossings(everywhere, vertices, ends, encoded), faces)
        return PendingMesh(mesh, lengths, rows, self._space)

    @torch.no_grad()
    def _everywhere(self) -> tuple[Float[Tensor, "V W"], Float[Tensor, " V"]]:
        """Return the encoding of all grid vertices, and the field whose zero level set is meshed."""
        encoded = self._points()()
        return encoded, self._closed(self.network.distances(encoded))

    def crossings(
        self,
        everywhere: Float[Tensor, " V"],
        vertices: Int[Tensor, " U"],
        ends: Int[Tensor, "N 2"],
        encoded: Float[Tensor, "V W"] | None = None,
    ) -> Float[Tensor, "N 3"]:
        """Return the positions [N,3] of the surface vertices. One vertex lies on each crossed edge.

        everywhere: the field at all V grid vertices, which determines the topology. vertices: indices of the
        U vertices of crossed edges. ends: both ends of each crossed edge, as indices into `vertices`.
        encoded: the encoding of all V vertices, if it is already computed. The result is differentiable with
        respect to the parameters through the field at the U vertices.
        """
        if self.start is None and triton_available(self.v_pos, everywhere):
            from geometry.kernels import edge_crossings_triton

            raw_output = self.network.raw_output(self._points(), vertices, encoded)
            fixed = everywhere, self.v_pos, self.on_wall
            return edge_crossings_triton.crossings(raw_output, *fixed, vertices, ends, self.reach)
        sdf, v_pos = self.field(vertices, encoded)
        sdf = self._closed(sdf, vertices)
        # sdf gets the values of `everywhere` and the gradient of the recomputed values. The recomputed values
        # are not used, because rounding depends on the batch and could change their sign.
        sdf = _rows(everywhere, vertices) + (sdf - sdf.detach())
        return crossing_points(v_pos, sdf, ends)

    def _points(self) -> PrecomputedEncoding:
        if self._encoding is None or self._encoding.device != self.v_pos.device:
            self._encoding = self.network.encoding.precompute(self.v_pos)
        return self._encoding

    def _closed(
        self, sdf: Float[Tensor, " N"], vertices: Int[Tensor, " N"] | None = None
    ) -> Float[Tensor, " N"]:
        """Return the field whose zero level set is meshed.

        The field is limited to the band of `limit_to_band`, and it is positive on the boundary of the grid.
        """
        if self.start is not None:
            start = _rows(self.start, vertices)
            sdf = start + self.band * ((sdf - start) / self.band).tanh()
        open_wall = _rows(self.on_wall, vertices) & (sdf < 0)
        return sdf.masked_fill(open_wall, self.wall_distance)

    def limit_to_band(self, distances: Float[Tensor, " V"], band: float) -> None:
        """Keep the surface within `band` (world units) of a shape.

        distances: the signed distances d of this shape at the grid vertices. The limited field is s = d +
        band/2 · tanh((field − d) / (band/2)), so the field moves the surface by at most band/2, and the
        vertex offsets move it by at most band/2. If the field equals d, as after the fit, the limited field
        equals d too. The surface cannot leave the band, and the gradient is nonzero everywhere.
        """
        self.start, self.band = distances, max(band / 2, 1e-9)
        self.reach = min(self.reach, self.band / math.sqrt(3))

    def fit_loss(self, points: Float[Tensor, "N 3"], distances: Float[Tensor, " N"]) -> Float[Tensor, ""]:
        """Return the mean squared error of the signed distance at the points. Vertex offsets get no
        gradient.
        """
        sdf, _ = self.network(points)
        return (sdf - distances).square().mean()


def cell_size(config: GeometryConfig) -> float:
    """Return the edge length of a lattice cell in world units."""
    return config.mesh_scale / cells_per_axis(config.dmtet_grid)


def _rows(values: Tensor, rows: Int[Tensor, " N"] | None) -> Tensor:
    return values if rows is None else values.index_select(0, rows)


def _grid(config: GeometryConfig) -> TetGrid:
    if config.tet_grid_file is not None:
        return load_tet_grid(config.tet_grid_file, config.mesh_scale, config.dmtet_grid)
    return make_tet_grid(config.dmtet_grid, config.mesh_scale)
