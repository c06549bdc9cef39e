"""DMTet: a signed-distance field on a tetrahedral grid whose zero surface is the mesh (Shen et al. 2021)."""

import math

import torch
from jaxtyping import Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from geometry.marching_tets import compact_topology, crossing_points
from geometry.sdf_network import SdfNetwork
from geometry.tet_grid import TetGrid, cells_per_axis, load_tet_grid, make_tet_grid
from render.encoding.hash_grid import HashGrid, PrecomputedEncoding
from render.kernels.available import triton_available
from render.mesh import Mesh, make_mesh


@dataclass(frozen=True)
class GeometryConfig:
    """Config section of the tetrahedral grid and its field."""

    dmtet_grid: int = Field(64, ge=5, le=512, description="resolution of the tetrahedral grid: 64, 128, 256")
    mesh_scale: float = Field(2.1, gt=0, description="side of the cube that the grid fills, world units")
    tet_grid_file: str | None = Field(
        None,
        description=".npz with vertices [V,3] in [-0.5, 0.5] and indices [T,4], instead of our own lattice",
    )
    hash_n_levels: int = Field(16, ge=1, le=32, description="levels of the hash encoding")
    hash_log2_hashmap_size: int = Field(19, ge=4, le=24, description="log2 of the table rows a level")
    hash_max_resolution: int = Field(4096, ge=16, description="cells an axis of the finest level")
    detail_band: float | None = Field(
        None,
        ge=0,
        description="how far the surface may move from the start shape after the fit, in cells of the grid; "
        "null is 0.25 where coarse_iter is 400 or less (only detail is added), otherwise no limit",
    )


class EmptySurfaceError(ValueError):
    """The field has no sign change left: there is nothing to render."""


class DMTet(nn.Module):
    """The field over a fixed grid; `mesh()` extracts the surface, differentiable in all parameters.

    A grid vertex moves by tanh(d) / resolution (world units, per axis), resolution being the grid's name.
    The grid's wall counts as outside, so the surface is always closed.
    Move the module to its device before the first mesh(): the vertices' encoding is prepared once a device.
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
        # A fraction of a lattice cell, so that a cap at the wall lies within its outermost cells.
        self.wall_distance = 0.5 * config.mesh_scale / config.dmtet_grid
        encoding = HashGrid(
            low,
            high,
            levels=config.hash_n_levels,
            log2_entries=config.hash_log2_hashmap_size,
            finest=config.hash_max_resolution,
            generator=generator,
        )
        self.network = SdfNetwork(encoding, generator=generator)
        self.register_buffer("start", None, persistent=False)
        self.band = math.inf
        # How far a vertex moves along each axis.
        self.reach = 1 / self.resolution
        self._pinned: PrecomputedEncoding | None = None

    def field(
        self, vertices: Int[Tensor, " N"] | None = None
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        """Signed distance (before the wall is closed) and moved position of all grid vertices, or of some."""
        sdf, offset = self.network(self._points(), vertices)
        return sdf, _rows(self.v_pos, vertices) + offset.tanh() * self.reach

    def mesh(self) -> Mesh:
        """The zero surface with smooth normals. Raises EmptySurfaceError where the field has one sign only.

        The field's signs everywhere tell where the surface is. Its shape depends on the vertices next to it
        alone, so only there is the field differentiated: the same gradient, with a tenth of the work.
        """
        with torch.no_grad():
            everywhere = self._closed(self.network.distances(self._points()))
        vertices, ends, faces = compact_topology(everywhere < 0, self.tets, self.edges, self.tet_edges)
        if len(faces) == 0:
            raise EmptySurfaceError(
                "the surface vanished: try a lower guidance_weight, a larger start shape or another seed"
            )
        return make_mesh(self.crossings(everywhere, vertices, ends), faces)

    def crossings(
        self, everywhere: Float[Tensor, " V"], vertices: Int[Tensor, " U"], ends: Int[Tensor, "N 2"]
    ) -> Float[Tensor, "N 3"]:
        """The surface's points on the edges between `ends`, which are places among the vertices next to it.

        everywhere: the meshed field at all vertices; the gradient is that of the field at those next to the
        surface.
        """
        if self.start is None and triton_available(self.v_pos, everywhere):
            from geometry.kernels import edge_crossings_triton

            answers = self.network.answers(self._points(), vertices)
            fixed = everywhere, self.v_pos, self.on_wall
            return edge_crossings_triton.crossings(answers, *fixed, vertices, ends, self.reach)
        sdf, v_pos = self.field(vertices)
        sdf = self._closed(sdf, vertices)
        # The values that the signs came from: another batch may be rounded to another sign.
        sdf = _rows(everywhere, vertices) + (sdf - sdf.detach())
        return crossing_points(v_pos, sdf, ends)

    def _points(self) -> PrecomputedEncoding:
        if self._pinned is None or self._pinned.device != self.v_pos.device:
            self._pinned = self.network.encoding.pin(self.v_pos)
        return self._pinned

    def _closed(
        self, sdf: Float[Tensor, " N"], vertices: Int[Tensor, " N"] | None = None
    ) -> Float[Tensor, " N"]:
        """The field that is meshed: within the band of limit_to_band, and outside on the grid's wall."""
        if self.start is not None:
            start = _rows(self.start, vertices)
            sdf = start + self.band * ((sdf - start) / self.band).tanh()
        open_wall = _rows(self.on_wall, vertices) & (sdf < 0)
        return sdf.masked_fill(open_wall, self.wall_distance)

    def limit_to_band(self, distances: Float[Tensor, " V"], band: float) -> None:
        """Hold the surface within `band` (world units) of a shape, given by its distances at the vertices.

        Half of the band is for the level, s = d + band/2 · tanh((field − d) / (band/2)), and half for the
        vertices' moves. Nothing changes where the field is the distance d, as after the fit; no field leaves
        the band, and the gradient never quite ends.
        """
        self.start, self.band = distances, max(band / 2, 1e-9)
        self.reach = min(self.reach, self.band / math.sqrt(3))

    def fit_loss(self, points: Float[Tensor, "N 3"], distances: Float[Tensor, " N"]) -> Float[Tensor, ""]:
        """Mean squared error of the signed distance at points; the offsets get no gradient."""
        sdf, _ = self.network(points)
        return (sdf - distances).square().mean()


def cell_size(config: GeometryConfig) -> float:
    """Side of a cell of the lattice, world units."""
    return config.mesh_scale / cells_per_axis(config.dmtet_grid)


def _rows(values: Tensor, rows: Int[Tensor, " N"] | None) -> Tensor:
    return values if rows is None else values.index_select(0, rows)


def _grid(config: GeometryConfig) -> TetGrid:
    if config.tet_grid_file is not None:
        return load_tet_grid(config.tet_grid_file, config.mesh_scale, config.dmtet_grid)
    return make_tet_grid(config.dmtet_grid, config.mesh_scale)
