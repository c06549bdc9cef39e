"""Test large steps: the linear system, its solvers, the optimizer, and the surface with movable vertices."""

import pytest
import torch

from geometry.large_steps import (
    UniformAdam,
    _factorised,
    _iterative,
    conjugate_gradients,
    make_solver,
    smooth,
    system_matrix,
)
from geometry.start_shape import _sphere
from geometry.vertex_surface import VertexSurface


@pytest.fixture(scope="module")
def ball():
    """Return a sphere with noise: positions (float64) and faces."""
    v_pos, faces = _sphere(rings=8, segments=16)
    noise = 0.05 * torch.randn(v_pos.shape, generator=torch.Generator().manual_seed(0))
    return 0.6 * v_pos + noise.double(), faces


def dense_matrix(faces, count, weight):
    """Compute I + λL with a loop over the edges."""
    matrix = torch.eye(count, dtype=torch.float64)
    edges = {tuple(sorted((int(f[i]), int(f[i - 1])))) for f in faces for i in range(3)}
    for a, b in edges:
        for i, j in ((a, b), (b, a)):
            matrix[i, i] += weight
            matrix[i, j] -= weight
    return matrix


def as_dense(indices, values):
    return torch.sparse_coo_tensor(indices, values, check_invariants=True).to_dense()


def test_system_matrix_equals_plain_loops(ball):
    v_pos, faces = ball
    indices, values = system_matrix(faces, len(v_pos), 19.0)
    assert indices.unique(dim=1).shape == indices.shape
    assert torch.equal(as_dense(indices, values), dense_matrix(faces, len(v_pos), 19.0))


def test_edges_of_open_and_touching_faces_count_once():
    # Three faces share the edge (0, 1). Vertex 5 belongs to no face.
    faces = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]])
    indices, values = system_matrix(faces, 6, 2.0)
    found = as_dense(indices, values)
    assert torch.equal(found, dense_matrix(faces, 6, 2.0))
    assert found[0, 0] == 1 + 2 * 4 and found[5, 5] == 1


@pytest.mark.parametrize("weight", [0.5, 19.0, 500.0])
def test_both_solvers_equal_a_dense_solve(ball, weight):
    v_pos, faces = ball
    right = torch.randn(v_pos.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.linalg.solve(dense_matrix(faces, len(v_pos), weight), right)
    system = *system_matrix(faces, len(v_pos), weight), len(v_pos)
    for make, tolerance in ((_factorised, 1e-12), (_iterative, 1e-7)):
        assert torch.allclose(make(*system)(right), expected, rtol=0, atol=tolerance)
        assert make(*system)(right.float()).dtype == torch.float32


def test_conjugate_gradients_of_zero_and_of_nan(ball):
    v_pos, faces = ball
    matrix = dense_matrix(faces, len(v_pos), 19.0)
    right = torch.zeros_like(v_pos)
    right[3, 1] = 1.0
    found = conjugate_gradients(lambda x: matrix @ x, right)
    assert torch.equal(found[:, 0], right[:, 0]) and found[3, 1] > 0
    right[0, 0] = torch.nan
    assert not conjugate_gradients(lambda x: matrix @ x, right).isfinite().all()


def test_gradient_of_the_smoothing_is_exact(ball):
    v_pos, faces = ball
    solver = make_solver(faces[:20], len(v_pos), 3.0)
    x = torch.randn(len(v_pos), 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: smooth(x, solver), x, fast_mode=True)


def optimise(v_pos, faces, weight, optimizer=None, steps=30):
    """Return the positions after `steps` steps towards a scaled copy of the mesh.

    Each vertex has a different weight in the loss.
    """
    shape = VertexSurface(v_pos, faces, weight)
    optimizer = shape.optimizer(0.01) if optimizer is None else optimizer(shape)
    importance = torch.linspace(0.1, 3, len(v_pos), dtype=v_pos.dtype)[:, None]
    for _ in range(steps):
        optimizer.zero_grad()
        (importance * (shape.mesh().v_pos - 1.5 * v_pos).square()).sum().backward()
        optimizer.step()
    return shape.mesh().v_pos.detach()


def test_lambda_zero_equals_adam_on_the_positions(ball):
    v_pos, faces = ball
    positions = v_pos.clone().requires_grad_()
    adam = torch.optim.Adam([positions], lr=0.01, betas=(0.9, 0.99), eps=1e-15)
    importance = torch.linspace(0.1, 3, len(v_pos), dtype=v_pos.dtype)[:, None]
    for _ in range(30):
        adam.zero_grad()
        (importance * (positions - 1.5 * v_pos).square()).sum().backward()
        adam.step()
    assert torch.allclose(optimise(v_pos, faces, 0.0), positions, rtol=0, atol=1e-12)
    assert (optimise(v_pos, faces, 19.0) - positions).abs().max() > 0.01


def test_change_of_u_equals_optimising_u_itself(ball):
    """The reference runs Adam on u with v = (I + λL)⁻¹ u, and uses a dense matrix and plain formulas."""
    v_pos, faces = ball
    inverse = torch.linalg.inv(dense_matrix(faces, len(v_pos), 19.0))
    u = torch.linalg.solve(inverse, v_pos)
    importance = torch.linspace(0.1, 3, len(v_pos), dtype=v_pos.dtype)[:, None]
    first = second = torch.zeros_like(u)
    for step in range(1, 31):
        gradient = inverse.T @ (2 * importance * (inverse @ u - 1.5 * v_pos))
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        largest = (second / (1 - 0.99**step)).max()
        u = u - 0.01 * first / (1 - 0.9**step) / largest.sqrt()
    assert torch.allclose(optimise(v_pos, faces, 19.0), inverse @ u, rtol=0, atol=1e-9)


def test_uniform_adam_on_one_value_is_adam_and_skips_a_step():
    values = [torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64)) for _ in range(2)]
    optimizers = UniformAdam(values[:1], lr=0.1), torch.optim.Adam(values[1:], 0.1, (0.9, 0.99), 1e-15)
    for step in range(20):
        for value, optimizer in zip(values, optimizers, strict=True):
            value.grad = (step + 1) * value.detach() ** 3
            optimizer.step()
    assert torch.allclose(*values, rtol=0, atol=1e-12) and values[0] < 1.5
    before = values[0].detach().clone(), {k: v.clone() for k, v in optimizers[0].state[values[0]].items()}
    values[0].grad = torch.full_like(values[0], torch.nan)
    optimizers[0].found_inf = torch.tensor(1.0)
    optimizers[0].step()
    assert torch.equal(values[0], before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in optimizers[0].state[values[0]].items())
