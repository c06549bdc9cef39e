"""Multiresolution hash encoding of points (Müller et al. 2022, Instant Neural Graphics Primitives).

Level l of L has round(N_min · (N_max / N_min)^(l / (L − 1))) cells per axis, N_min being base_resolution and
N_max max_resolution. If its (cells + 1)³ vertices fit into 2^log2_hashmap_size rows, each vertex has its own
row. Otherwise vertices share rows by the spatial hash x ⊕ 2654435761 y ⊕ 805459861 z. The feature of a point
is the trilinear interpolation of the eight corners of its cell, concatenated over the levels.

The backward pass saves only the points and the table. It recomputes indices and weights (L × 8 per point).
"""

import logging
import warnings
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from render.encoding.hash_levels import GridLevel, grid_levels
from render.kernels.available import triton_works

logger = logging.getLogger(__name__)

HASH_PRIMES = (1, 2654435761, 805459861)
# Above this many weights (8 bytes each, stored twice) a precomputed encoding costs more memory than it saves.
MAX_PRECOMPUTED_WEIGHTS = 1 << 25


def level_corners(
    points: Float[Tensor, "N 3"], level: GridLevel
) -> tuple[Int[Tensor, "N 8"], Float[Tensor, "N 8"]]:
    """Table rows [N,8] and trilinear weights [N,8] of the cell corners around points in [0, 1]³."""
    scaled = points * level.resolution
    # A point with coordinate 1 belongs to the last cell.
    cell = scaled.floor().clamp(max=level.resolution - 1)
    fraction = scaled - cell
    near = cell.long()
    corner = torch.stack([near, near + 1], -1)  # [N, axis, side]
    weight = torch.stack([1 - fraction, fraction], -1)
    side_weight = weight[:, 0, :, None, None] * weight[:, 1, None, :, None] * weight[:, 2, None, None, :]
    if level.dense:
        stride = level.resolution + 1
        x, y, z = corner[:, 0], corner[:, 1] * stride, corner[:, 2] * (stride * stride)
        row = x[:, :, None, None] + y[:, None, :, None] + z[:, None, None, :]
    else:
        x, y, z = (corner[:, axis] * HASH_PRIMES[axis] for axis in range(3))
        row = (x[:, :, None, None] ^ y[:, None, :, None] ^ z[:, None, None, :]) & (level.entries - 1)
    return row.reshape(-1, 8) + level.offset, side_weight.reshape(-1, 8)


def encode_torch(
    points: Float[Tensor, "N 3"], table: Float[Tensor, "T F"], levels: tuple[GridLevel, ...]
) -> Float[Tensor, "N LF"]:
    """Features of points in [0, 1]³, on any device."""
    features = table.shape[1]
    out = table.new_empty(len(points), len(levels), features)
    for number, level in enumerate(levels):
        row, weight = level_corners(points, level)
        out[:, number] = (table[row] * weight[:, :, None]).sum(1)
    return out.reshape(len(points), len(levels) * features)


def encode_torch_backward(
    points: Float[Tensor, "N 3"],
    grad: Float[Tensor, "N LF"],
    levels: tuple[GridLevel, ...],
) -> Float[Tensor, "T F"]:
    """Gradient with respect to the table, from the gradient with respect to the features."""
    features = grad.shape[1] // len(levels)
    grad = grad.reshape(len(points), len(levels), features)
    grad_table = grad.new_zeros(levels[-1].offset + levels[-1].entries, features)
    for number, level in enumerate(levels):
        row, weight = level_corners(points, level)
        weighted = weight[:, :, None] * grad[:, number, None, :]
        grad_table.index_add_(0, row.reshape(-1), weighted.reshape(-1, features))
    return grad_table


class _Encode(torch.autograd.Function):
    """The encoding by a (forward, backward) pair of functions. It saves only the points."""

    @staticmethod
    def forward(ctx, points, table, levels, forward, backward):
        ctx.save_for_backward(points)
        ctx.levels, ctx.backward_function = levels, backward
        return forward(points, table, levels)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (points,) = ctx.saved_tensors
        return None, ctx.backward_function(points, grad, ctx.levels), None, None, None


class _SparseProduct(torch.autograd.Function):
    """matrix @ table. The transpose of the matrix is given for the backward pass."""

    @staticmethod
    def forward(ctx, table, matrix, transpose):
        ctx.transpose = transpose
        return matrix @ table

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return ctx.transpose @ grad.contiguous(), None, None


def choose_encoder(device: torch.device, dtype: torch.dtype, features: int) -> tuple[Callable, Callable]:
    """The (forward, backward) functions: numba on CPU, Triton on CUDA, otherwise torch.

    numba and Triton support float32 only. Triton also needs a power of two of features per level.
    """
    compiled = None
    if dtype == torch.float32:
        if device.type == "cpu":
            compiled = numba_encoder()
        elif device.type == "cuda" and features & (features - 1) == 0:
            compiled = triton_encoder(device)
    return compiled or (encode_torch, encode_torch_backward)


@cache
def numba_encoder() -> tuple[Callable, Callable] | None:
    """The numba functions, or None if numba is missing or unusable. The reason is logged once."""
    try:
        from render.encoding import hash_grid_numba
    # numba raises various exceptions if it does not support the installed NumPy.
    except Exception as error:
        _log_fallback("numba", error)
        return None
    return hash_grid_numba.encode, hash_grid_numba.encode_backward


def triton_encoder(device: torch.device) -> tuple[Callable, Callable] | None:
    """The Triton kernels, or None if Triton does not run on the device. `triton_works` logs the reason."""
    if not triton_works(device):
        return None
    from render.encoding import hash_grid_triton

    return hash_grid_triton.encode, hash_grid_triton.encode_backward


def _log_fallback(package: str, error: Exception) -> None:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    logger.warning(
        "hash encoding: using torch (slower), because %s cannot run: %s; pip install %s",
        package,
        reason,
        package,
    )


class HashGrid(nn.Module):
    """Learnable features over the box [box_min, box_max]. Points outside are clamped to the box.

    The table [T, n_features] concatenates the levels and starts U(−1e−4, 1e−4). Gradients flow to the table
    only, so the points must not require any.
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
        # A flat box (a planar mesh) has size 0 along one axis.
        self.register_buffer("box_size", (box_max - box_min).clamp_min(1e-6), persistent=False)
        table = torch.empty(self.levels[-1].offset + self.levels[-1].entries, n_features)
        self.table = nn.Parameter(table.uniform_(-1e-4, 1e-4, generator=generator))

    def to_unit(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """World points in box coordinates, [0, 1]³."""
        assert not points.requires_grad, "the hash grid gives points no gradient: detach them"
        return ((points - self.box_min) / self.box_size).clamp(0, 1)

    def forward(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N LF"]:
        return self.encode_unit(self.to_unit(points))

    def encode_unit(self, unit: Float[Tensor, "N 3"]) -> Float[Tensor, "N LF"]:
        """The encoding of points in box coordinates (see to_unit)."""
        forward, backward = choose_encoder(self.table.device, self.table.dtype, self.table.shape[1])
        return _Encode.apply(unit, self.table, self.levels, forward, backward)

    def precompute(self, points: Float[Tensor, "N 3"]) -> "PrecomputedEncoding":
        """The encoding of fixed points, faster on CPU. Call it after .to(device)."""
        return PrecomputedEncoding(self, points)


class PrecomputedEncoding:
    """The encoding of fixed points. A call returns [N, n_levels · n_features] for all points or for some
    rows.

    On CPU it is a constant sparse matrix A with eight weights per row (point, level) and its transpose:
    forward A @ table, backward Aᵀ @ gradient. On a GPU, or above MAX_PRECOMPUTED_WEIGHTS, only the points are
    stored, in box coordinates.
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

    def __call__(self, rows: Int[Tensor, " R"] | None = None) -> Float[Tensor, "R LF"]:
        if rows is not None:
            return self.grid.encode_unit(self.points.index_select(0, rows))
        if self.matrices is None:
            return self.grid.encode_unit(self.points)
        encoded = _SparseProduct.apply(self.grid.table, *self.matrices)
        return encoded.reshape(len(self.points), self.grid.width)


def interpolation_matrices(
    points: Float[Tensor, "N 3"], levels: tuple[GridLevel, ...]
) -> tuple[Float[Tensor, "NL T"], Float[Tensor, "T NL"]]:
    """The encoding of points in [0, 1]³ as a CSR matrix over the rows of the table, and its transpose."""
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
