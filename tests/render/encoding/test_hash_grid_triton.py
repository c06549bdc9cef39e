"""Compare the Triton kernels of the hash encoding with torch: boundaries, corners and large sizes."""

import itertools

import pytest
import torch

from render.encoding import hash_grid_triton, reference, select
from render.encoding.hash_grid import HashGrid
from render.encoding.select import choose_encoder

# Of the five levels, those with 4, 7 and 13 cells per axis are dense, and those with 22 and 40 are hashed.
SMALL = {"n_levels": 5, "log2_hashmap_size": 12, "base_resolution": 4, "max_resolution": 40}
UNIT_BOX = torch.zeros(3), torch.ones(3)


def table_and_levels(device: torch.device, features: int = 2, **changes):
    generator = torch.Generator().manual_seed(5)
    grid = HashGrid(*UNIT_BOX, **(SMALL | changes), n_features=features, generator=generator)
    table = torch.randn(grid.table.shape, generator=generator)
    return table.to(device), grid.levels


def points(count: int, device: torch.device, ordered: bool = False) -> torch.Tensor:
    draw = torch.rand(count, 3, generator=torch.Generator().manual_seed(count))
    if ordered:  # Sort the points so that neighbouring points share coarse cells.
        draw = draw[(draw * 4).floor().matmul(torch.tensor([16.0, 4, 1])).argsort()]
    return draw.to(device)


def cotangent(count: int, width: int, device: torch.device) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1)).to(device)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that the errors are at most a few units in the last place of the largest value."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert (found - expected).abs().max() <= 4e-6 * expected.abs().max()


@pytest.mark.parametrize("features", [1, 2, 4])
def test_features_equal_the_reference(features, kernel_device):
    table, levels = table_and_levels(kernel_device, features)
    assert {level.dense for level in levels} == {True, False}
    # The number of points is not a multiple of the block size, and the number of levels (5) is not a multiple
    # of the number of levels per program.
    unit = points(hash_grid_triton.BLOCK + 37, kernel_device)
    assert_close(hash_grid_triton.encode(unit, table, levels), reference.encode(unit, table, levels))


@pytest.mark.parametrize("group", [1, 8])
def test_result_does_not_depend_on_the_program_sizes(group, kernel_device):
    table, levels = table_and_levels(kernel_device)
    unit = points(70, kernel_device)
    found = hash_grid_triton.encode(unit, table, levels, group=group, block=32)
    assert torch.equal(found, hash_grid_triton.encode(unit, table, levels))


def test_points_on_boundaries_and_corners(kernel_device):
    table, levels = table_and_levels(kernel_device)
    steps = [0.0, 0.25, 0.5, 1 - 2**-24, 1.0]
    unit = torch.tensor(list(itertools.product(steps, repeat=3)), device=kernel_device)
    assert_close(hash_grid_triton.encode(unit, table, levels), reference.encode(unit, table, levels))
    grad = cotangent(len(unit), 10, kernel_device)
    expected = reference.encode_backward(unit, grad, levels)
    assert_close(hash_grid_triton.encode_backward(unit, grad, levels), expected)


def test_hash_overflow_equals_the_reference(kernel_device):
    """With 2²² cells per axis, the products of the hash need 54 bits and overflow 32-bit integers."""
    size = {"n_levels": 1, "base_resolution": 1 << 22, "max_resolution": 1 << 22}
    table, levels = table_and_levels(kernel_device, **size)
    unit = points(100, kernel_device)
    assert_close(hash_grid_triton.encode(unit, table, levels), reference.encode(unit, table, levels))


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_gradient_equals_the_reference(runs, ordered, kernel_device):
    _, levels = table_and_levels(kernel_device)
    unit = points(45, kernel_device, ordered)
    grad = cotangent(45, 10, kernel_device)
    found = hash_grid_triton.encode_backward(unit, grad, levels, runs=runs, block=32)
    assert_close(found, reference.encode_backward(unit, grad, levels))


@pytest.mark.parametrize("runs", [False, True])
def test_gradient_with_zeros_and_nan(runs, kernel_device):
    """Zeros are skipped, and NaN is not."""
    _, levels = table_and_levels(kernel_device)
    unit, grad = points(45, kernel_device), cotangent(45, 10, kernel_device)
    grad[::2] = 0
    grad[7, 3] = 0
    expected = reference.encode_backward(unit, grad, levels)
    assert_close(hash_grid_triton.encode_backward(unit, grad, levels, runs=runs, block=32), expected)
    grad[7] = float("nan")
    found = hash_grid_triton.encode_backward(unit, grad, levels, runs=runs, block=32)
    assert torch.equal(found.isnan(), reference.encode_backward(unit, grad, levels).isnan())
    assert found.isnan().any()


def test_equal_points_in_one_run(kernel_device):
    """All points lie in the same cell, and they fill more than one block of the kernel."""
    _, levels = table_and_levels(kernel_device)
    unit = torch.full((40, 3), 0.3, device=kernel_device)
    grad = cotangent(40, 10, kernel_device)
    found = hash_grid_triton.encode_backward(unit, grad, levels, block=16)
    assert_close(found, reference.encode_backward(unit, grad, levels))


def test_no_points(kernel_device):
    table, levels = table_and_levels(kernel_device)
    none = torch.zeros(0, 3, device=kernel_device)
    assert hash_grid_triton.encode(none, table, levels).shape == (0, 10)
    grad = hash_grid_triton.encode_backward(none, none.new_zeros(0, 10), levels)
    assert grad.shape == table.shape and not grad.any()


def test_nan_point_affects_no_other_point(kernel_device):
    table, levels = table_and_levels(kernel_device)
    unit = points(3, kernel_device)
    unit[1] = float("nan")
    found = hash_grid_triton.encode(unit, table, levels)
    assert found[1].isnan().all()
    assert_close(found[[0, 2]], reference.encode(unit[[0, 2]], table, levels))


def test_kernels_are_selected_for_supported_sizes(kernel_device, monkeypatch):
    monkeypatch.setattr(select, "triton_works", lambda device: True)
    cuda = torch.device("cuda")
    assert choose_encoder(cuda, torch.float32, 2).encode is hash_grid_triton.encode
    assert choose_encoder(cuda, torch.float32, 3) is reference.REFERENCE
    assert choose_encoder(cuda, torch.float64, 2) is reference.REFERENCE
    assert choose_encoder(torch.device("cpu"), torch.float32, 2).name == "numba"


@pytest.mark.gpu
@pytest.mark.parametrize("count", [277_000, 2_100_001])
@pytest.mark.parametrize("ordered", [False, True])
def test_real_size(count, ordered):
    cuda = torch.device("cuda")
    table, levels = table_and_levels(
        cuda, n_levels=16, log2_hashmap_size=19, base_resolution=16, max_resolution=4096
    )
    unit = points(count, cuda, ordered)
    assert_close(hash_grid_triton.encode(unit, table, levels), reference.encode(unit, table, levels))
    grad = cotangent(count, 32, cuda)
    expected = reference.encode_backward(unit, grad, levels)
    for runs in (False, True):
        found = hash_grid_triton.encode_backward(unit, grad, levels, runs=runs)
        # In both implementations, the gradient of a row of a coarse level is a sum over 3000 points in no
        # fixed order. The rounding errors are therefore larger than in the other tests.
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
        assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.gpu
def test_training_through_the_module_on_cuda():
    torch.manual_seed(0)
    grid = HashGrid(*UNIT_BOX).cuda()
    unit = points(5000, torch.device("cuda"))
    weights = torch.randn(5000, grid.width, device="cuda")
    for encoded in (grid(unit), grid.precompute(unit)()):
        grid.table.grad = None
        (encoded * weights).sum().backward()
        assert_close(encoded.detach(), reference.encode(unit, grid.table.detach(), grid.levels))
        assert_close(grid.table.grad, reference.encode_backward(unit, weights, grid.levels))
    assert grid.encoder.name == "triton"
