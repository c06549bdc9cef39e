"""Compare the hash encoding with SciPy's trilinear interpolation and with autograd."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from render.encoding import hash_grid, hash_grid_numba, reference, select
from render.encoding.hash_grid import HashGrid, interpolation_matrices
from render.encoding.hash_levels import grid_levels

ROOT = Path(__file__).parents[3]
BOX = (torch.tensor([-1.0, -0.5, 0.0]), torch.tensor([1.0, 1.5, 3.0]))


def small_grid(**changes) -> HashGrid:
    options = {"n_levels": 5, "log2_hashmap_size": 10, "base_resolution": 4, "max_resolution": 40} | changes
    return HashGrid(*BOX, **options, generator=torch.Generator().manual_seed(3))


def points_in_box(count: int, seed: int = 0) -> torch.Tensor:
    draw = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))
    return BOX[0] + draw * (BOX[1] - BOX[0])


def test_level_resolutions_grow_geometrically():
    levels = grid_levels(16, 19, 16, 4096)
    resolutions = np.array([level.resolution for level in levels])
    assert resolutions[0] == 16 and resolutions[-1] == 4096
    ratios = resolutions[1:] / resolutions[:-1]
    assert np.allclose(ratios, 256 ** (1 / 15), rtol=0.03)
    for level in levels:
        assert level.dense == ((level.resolution + 1) ** 3 <= 2**19)
        assert level.entries == min((level.resolution + 1) ** 3, 2**19)
    assert [level.offset for level in levels[1:]] == list(np.cumsum([level.entries for level in levels])[:-1])


def test_table_starts_small_and_reproducibly():
    first, second = small_grid(), small_grid()
    assert torch.equal(first.table, second.table)
    assert first.table.abs().max() <= 1e-4
    assert first.table.std().item() == pytest.approx(1e-4 / 3**0.5, rel=0.05)


ENCODERS = pytest.mark.parametrize("encode", [reference.encode, hash_grid_numba.encode])


@ENCODERS
@pytest.mark.parametrize("resolution", [4, 9])
def test_dense_level_is_trilinear_interpolation(resolution, encode):
    grid = small_grid(n_levels=1, base_resolution=resolution, max_resolution=resolution)
    assert grid.levels[0].dense
    with torch.no_grad():
        grid.table.normal_()
    # x varies fastest in the table, but SciPy's values are indexed [x, y, z].
    values = (
        grid.table.detach()
        .numpy()
        .reshape(resolution + 1, resolution + 1, resolution + 1, 2)
        .transpose(2, 1, 0, 3)
    )
    axes = [np.linspace(BOX[0][a].item(), BOX[1][a].item(), resolution + 1) for a in range(3)]
    points = torch.cat([points_in_box(300), torch.stack(BOX)])
    expected = RegularGridInterpolator(axes, values, bounds_error=False, fill_value=None)(points.numpy())
    encoded = encode(grid.to_unit(points), grid.table.detach(), grid.levels)
    assert np.abs(encoded.numpy() - expected).max() < 1e-5


@ENCODERS
def test_hashed_level_interpolates_the_hashed_corners(encode):
    grid = small_grid(n_levels=1, base_resolution=30, max_resolution=30, log2_hashmap_size=8)
    assert not grid.levels[0].dense
    points = points_in_box(20)
    unit = ((points - BOX[0]) / (BOX[1] - BOX[0])).double().numpy() * 30
    encoded = encode(grid.to_unit(points), grid.table.detach(), grid.levels)
    for point, feature in zip(unit, encoded.numpy(), strict=True):
        low, expected = np.floor(point).astype(int), 0
        for corner in np.ndindex(2, 2, 2):
            x, y, z = (int(v) for v in low + corner)
            # The hash uses 32-bit arithmetic as in the paper.
            row = (x ^ (y * 2654435761 % 2**32) ^ (z * 805459861 % 2**32)) % 256
            weight = np.prod(np.where(corner, point - low, 1 - (point - low)))
            expected = expected + weight * grid.table[row].detach().numpy()
        assert np.abs(feature - expected).max() < 1e-8


def test_gradient_equals_autograd():
    grid = small_grid().double()
    points = points_in_box(200).double()
    cotangent = torch.randn(200, grid.width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (grid(points) * cotangent).sum().backward()
    table = grid.table.detach().clone().requires_grad_()
    (reference.encode(grid.to_unit(points), table, grid.levels) * cotangent).sum().backward()
    assert grid.table.grad.abs().sum() > 0
    assert torch.allclose(grid.table.grad, table.grad, atol=1e-12)


def test_compiled_encoding_equals_torch():
    grid = small_grid(n_levels=8, log2_hashmap_size=12, max_resolution=300)
    unit = grid.to_unit(torch.cat([points_in_box(2000), torch.stack(BOX)]))
    table = grid.table.detach()
    expected = reference.encode(unit, table, grid.levels)
    assert torch.allclose(hash_grid_numba.encode(unit, table, grid.levels), expected, rtol=1e-4, atol=1e-9)
    grad = torch.randn(len(unit), grid.width, generator=torch.Generator().manual_seed(2))
    expected = reference.encode_backward(unit, grad, grid.levels)
    assert torch.allclose(
        hash_grid_numba.encode_backward(unit, grad, grid.levels), expected, rtol=1e-4, atol=1e-4
    )


def test_compiled_gradient_is_deterministic():
    grid = small_grid()
    unit = grid.to_unit(points_in_box(3000))
    grad = torch.randn(len(unit), grid.width)
    first = hash_grid_numba.encode_backward(unit, grad, grid.levels)
    assert all(torch.equal(first, hash_grid_numba.encode_backward(unit, grad, grid.levels)) for _ in range(3))


@pytest.mark.parametrize("limit", [hash_grid.MAX_PRECOMPUTED_WEIGHTS, 0])
def test_precomputed_encoding_equals_direct_encoding(limit, monkeypatch):
    monkeypatch.setattr(hash_grid, "MAX_PRECOMPUTED_WEIGHTS", limit)
    grid, points = small_grid(), points_in_box(1000)
    precomputed = grid.precompute(points)
    assert (precomputed.matrices is None) == (limit == 0) and len(precomputed) == 1000
    cotangent = torch.randn(1000, grid.width)
    (grid(points) * cotangent).sum().backward()
    expected = grid.table.grad.clone()
    grid.table.grad = None
    encoded = precomputed()
    (encoded * cotangent).sum().backward()
    assert torch.allclose(encoded, grid(points), rtol=1e-4, atol=1e-9)
    assert torch.allclose(grid.table.grad, expected, rtol=1e-4, atol=1e-5)


def test_precomputed_encoding_uses_the_current_table():
    grid, points = small_grid(), points_in_box(10)
    precomputed = grid.precompute(points)
    with torch.no_grad():
        grid.table.mul_(2)
    assert torch.allclose(precomputed(), grid(points), rtol=1e-4)


def test_interpolation_matrices_are_transposes_with_unit_row_sums():
    grid = small_grid()
    matrix, transpose = interpolation_matrices(grid.to_unit(points_in_box(50)), grid.levels)
    assert torch.equal(matrix.to_dense(), transpose.to_dense().T)
    assert torch.allclose(matrix.to_dense().sum(1), torch.ones(50 * 5))


def test_encoder_is_selected_once_and_again_after_a_move():
    grid = small_grid()
    first = grid.encoder
    assert first.name == "numba" and grid.encoder is first
    assert grid.double().encoder.name == "reference"


@pytest.mark.parametrize("name", ["reference", "numba"])
def test_override_selects_the_encoder(name, monkeypatch):
    monkeypatch.setattr(select, "OVERRIDE", name)
    assert small_grid().encoder.name == name


def test_points_outside_are_clamped_and_flat_boxes_work():
    grid = small_grid()
    outside = torch.tensor([[9.0, 0.0, 1.0]])
    assert torch.equal(grid(outside), grid(torch.tensor([[1.0, 0.0, 1.0]])))
    flat = HashGrid(
        torch.tensor([0.0, 0, 0]),
        torch.tensor([1.0, 1, 0]),
        n_levels=2,
        log2_hashmap_size=8,
        max_resolution=32,
    )
    assert flat(torch.rand(5, 3) * torch.tensor([1.0, 1, 0])).isfinite().all()


def test_points_with_gradient_raise():
    with pytest.raises(AssertionError):
        small_grid()(points_in_box(3).requires_grad_())


@pytest.mark.gpu
def test_cuda_equals_cpu():
    grid, points = small_grid(n_levels=8, log2_hashmap_size=12, max_resolution=300), points_in_box(2000)
    cotangent = torch.randn(2000, grid.width)
    expected = grid(points)
    (expected * cotangent).sum().backward()
    expected_grad, grid.table.grad = grid.table.grad, None
    grid = grid.cuda()
    for encoded in (grid(points.cuda()), grid.precompute(points.cuda())()):
        grid.table.grad = None
        (encoded * cotangent.cuda()).sum().backward()
        assert torch.allclose(encoded.cpu(), expected, rtol=1e-3, atol=1e-8)
        assert torch.allclose(grid.table.grad.cpu(), expected_grad, rtol=1e-3, atol=1e-4)


def test_broken_numba_is_logged_once_and_torch_is_used(tmp_path):
    faults = ["ImportError('needs an older numpy')", "AttributeError('no\\nsuch')"]
    for lines in log_lines_of(
        """
from render.encoding.hash_grid import HashGrid
from render.encoding.reference import encode
from render.raster.select import choose_rasteriser
grid = HashGrid(torch.zeros(3), torch.ones(3), n_levels=2, log2_hashmap_size=8, max_resolution=32)
points = torch.rand(5, 3)
for _ in range(2):
    assert torch.equal(grid(points), encode(points, grid.table, grid.levels))
assert choose_rasteriser("cpu").name == "reference"
""",
        tmp_path / "numba.py",
        faults,
    ):
        assert len(lines) == 2 and lines[0].startswith(
            "hash encoding: using torch (slower), because numba cannot run: "
        )
        assert lines[1].startswith("rasteriser: reference (slower)")


def test_cuda_without_triton_uses_torch_and_logs_it_once(tmp_path):
    faults = ["ModuleNotFoundError('no triton')", "RuntimeError('old\\ndriver')"]
    for lines in log_lines_of(
        """
from render.encoding.reference import REFERENCE
from render.encoding.select import choose_encoder
for _ in range(2):
    assert choose_encoder(torch.device("cuda"), torch.float32, 2) is REFERENCE
""",
        tmp_path / "triton.py",
        faults,
    ):
        assert len(lines) == 2 and lines[0].startswith("Triton cannot run (")
        assert lines[1].startswith("hash encoding: using torch (slower), because triton cannot run: ")


EACH_FAULT = """
import logging, os, sys, torch
logging.basicConfig(format="%(message)s", level=logging.INFO)
program, module, *faults = sys.argv[1:]
for fault in faults:
    open(module, "w").write(f"raise {fault}")
    if (child := os.fork()) == 0:
        exec(program)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print("----", file=sys.stderr, flush=True)
"""


def log_lines_of(program: str, module: Path, faults: list[str]) -> list[list[str]]:
    """Run a program once for each fault, and return the log lines of each run.

    module: a module that is imported instead of the installed one, and raises the fault.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(module.parent), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-B", "-c", EACH_FAULT, program, str(module), *faults],
        capture_output=True,
        text=True,
        env=environment,
        cwd=module.parent,
    )
    assert done.returncode == 0, done.stderr
    *parts, rest = done.stderr.split("----\n")
    assert len(parts) == len(faults) and not rest
    return [part.splitlines() for part in parts]
