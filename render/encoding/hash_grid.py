"""Multiresolution hash encoding of points as a module. The formulas are in reference.py.

Only the points are saved for the backward pass. The 8 indices and weights per point and level are computed
again from the points.
"""

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from render.encoding.hash_levels import GridLevel, grid_levels
from render.encoding.reference import Encoder, level_corners
from render.encoding.select import choose_encoder

# The maximum number of weights of a precomputed encoding. Each weight is stored twice with 8 bytes, so the
# maximum memory is 512 MiB.
MAX_PRECOMPUTED_WEIGHTS = 1 << 25


class _Encode(torch.autograd.Function):
    """Encode points with an `Encoder`. Only the points are saved for the backward pass."""

    @staticmethod
    def forward(ctx, points, table, levels, encoder):
        ctx.save_for_backward(points)
        ctx.levels, ctx.encoder = levels, encoder
        return encoder.encode(points, table, levels)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (points,) = ctx.saved_tensors
        return None, ctx.encoder.encode_backward(points, grad, ctx.levels), None, None


class _Reuse(torch.autograd.Function):
    """Return features of points that are already computed. The table receives the same gradient as from
    `_Encode`.
    """

    @staticmethod
    def forward(ctx, features, points, table, levels, encoder):
        ctx.save_for_backward(points)
        ctx.levels, ctx.encoder = levels, encoder
        return features.view_as(features)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (points,) = ctx.saved_tensors
        return None, None, ctx.encoder.encode_backward(points, grad, ctx.levels), None, None


class _SparseProduct(torch.autograd.Function):
    """Compute matrix @ table. The backward pass multiplies by `transpose`, the transposed matrix."""

    @staticmethod
    def forward(ctx, table, matrix, transpose):
        ctx.transpose = transpose
        return matrix @ table

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return ctx.transpose @ grad.contiguous(), None, None


class HashGrid(nn.Module):
    """Learnable features over the box [box_min, box_max]. Points outside are clamped to the box.

    The table [T, n_features] contains the rows of all levels and is initialised from U(−1e−4, 1e−4). Only the
    table receives gradients, so points that require gradients are rejected.
    """

    def __init__(
        self,
        box_min: Float[Tensor, " 3"],
        box_max: Float[Tensor, " 3"],
        *,
        n_levels: int = 16,
        n_features: int = 2,
        log2_hashmap_size: int = 19,
        base_resolution: int = 16,
        max_resolution: int = 4096,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.levels = grid_levels(n_levels, log2_hashmap_size, base_resolution, max_resolution)
        self.width = n_levels * n_features
        box_min = torch.as_tensor(box_min, dtype=torch.float32)
        box_max = torch.as_tensor(box_max, dtype=torch.float32)
        self.register_buffer("box_min", box_min.clone(), persistent=False)
        # The box of a planar mesh has size 0 along one axis, but `to_unit` divides by the size.
        self.register_buffer("box_size", (box_max - box_min).clamp_min(1e-6), persistent=False)
        table = torch.empty(self.levels[-1].offset + self.levels[-1].entries, n_features)
        self.table = nn.Parameter(table.uniform_(-1e-4, 1e-4, generator=generator))
        self._encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        """Return the implementation of the encoding, which is selected once for each device and dtype of the
        table.
        """
        if self._encoder is None:
            self._encoder = choose_encoder(self.table.device, self.table.dtype, self.table.shape[1])
        return self._encoder

    def _apply(self, fn, recurse=True):
        """Convert the module, and clear the encoder because the device or dtype may change. `to`, `cuda`,
        `double` and similar methods call this.
        """
        self._encoder = None
        return super()._apply(fn, recurse)

    def to_unit(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Map world points to box coordinates in [0, 1]³."""
        assert not points.requires_grad, "the hash grid gives points no gradient: detach them"
        return ((points - self.box_min) / self.box_size).clamp(0, 1)

    def forward(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N LF"]:
        return self.encode_unit(self.to_unit(points))

    def encode_unit(self, unit: Float[Tensor, "N 3"]) -> Float[Tensor, "N LF"]:
        """Encode points that are given in box coordinates (see to_unit)."""
        return _Encode.apply(unit, self.table, self.levels, self.encoder)

    def precompute(self, points: Float[Tensor, "N 3"]) -> "PrecomputedEncoding":
        """Return the encoding of fixed points, which is faster on a CPU than encoding them in each call. Move
        the grid to its device before this call, because the returned encoding stays on the current device.
        """
        return PrecomputedEncoding(self, points)


class PrecomputedEncoding:
    """The encoding of fixed points. A call returns the features [N, n_levels · n_features] of all or some
    points.

    On a CPU, a constant sparse matrix A and its transpose are stored. Each row (point, level) of A has eight
    weights. The forward pass computes A @ table. The backward pass computes Aᵀ @ gradient. On a GPU, or with
    more than MAX_PRECOMPUTED_WEIGHTS weights, only the points in box coordinates are stored, and each call
    encodes them.
    """

    def __init__(self, grid: HashGrid, points: Float[Tensor, "N 3"]):
        self.grid = grid
        self.points = grid.to_unit(points.detach())
        self.device = points.device
        self.matrices: tuple[Tensor, Tensor] | None = None
        weights = len(points) * len(grid.levels) * 8
        if self.device.type == "cpu" and weights <= MAX_PRECOMPUTED_WEIGHTS:
            self.matrices = interpolation_matrices(self.points, grid.levels)

    def __len__(self) -> int:
        return len(self.points)

    def __call__(
        self, rows: Int[Tensor, " R"] | None = None, everywhere: Float[Tensor, "N LF"] | None = None
    ) -> Float[Tensor, "R LF"]:
        """Return the features of all points, or of the points with the indices `rows`.

        everywhere: the features of all points for the current table, without gradient. If no matrix is
        stored, the rows are copied from `everywhere` instead of encoded again. The result and the gradient of
        the table are the same with and without `everywhere`.
        """
        if rows is not None:
            points = self.points.index_select(0, rows)
            if everywhere is None or self.matrices is not None:
                return self.grid.encode_unit(points)
            grid, features = self.grid, everywhere.index_select(0, rows)
            return _Reuse.apply(features, points, grid.table, grid.levels, grid.encoder)
        if self.matrices is None:
            return self.grid.encode_unit(self.points)
        encoded = _SparseProduct.apply(self.grid.table, *self.matrices)
        return encoded.reshape(len(self.points), self.grid.width)


def interpolation_matrices(
    points: Float[Tensor, "N 3"], levels: tuple[GridLevel, ...]
) -> tuple[Float[Tensor, "NL T"], Float[Tensor, "T NL"]]:
    """Return the CSR matrix that interpolates the table at points in [0, 1]³, and its transpose. The matrix
    has one row per point and level, and one column per table row.
    """
    rows, entries = len(points) * len(levels), levels[-1].offset + levels[-1].entries
    column = torch.empty(len(points), len(levels), 8, dtype=torch.int32)
    value = torch.empty(len(points), len(levels), 8, dtype=points.dtype)
    for number, level in enumerate(levels):
        column[:, number], value[:, number] = level_corners(points, level)
    column, value = column.reshape(-1), value.reshape(-1)
    start = torch.arange(0, rows * 8 + 1, 8, dtype=torch.int32)
    matrix = _csr(start, column, value, (rows, entries))
    order = torch.argsort(column, stable=True)
    counts = torch.bincount(column, minlength=entries).cumsum(0)
    start = torch.cat([counts.new_zeros(1), counts]).int()
    row = torch.div(order, 8, rounding_mode="floor").int()
    return matrix, _csr(start, row, value[order], (entries, rows))


def _csr(start: Tensor, column: Tensor, value: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(start, column, value, shape, check_invariants=False)
