"""A parametrisation of vertex positions for smooth gradient steps, and its optimizer.

The positions are v = (I + λL)⁻¹ u, where L is the combinatorial Laplacian of the mesh. The optimizer is Adam
on u with one second moment for all values. The method is that of Nicolet, Jacobson, Jakob: "Large Steps in
Inverse Rendering of Geometry", SIGGRAPH Asia 2021.
"""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geometry.regularisers import sorted_edges

# The relative residual at which the conjugate gradient method stops, and the number of iterations between two
# tests of the residual. Tests are rare because each test waits for the device.
TOLERANCE, TEST_INTERVAL = 1e-7, 16
MAX_ITERATIONS = 2000

Solver = Callable[[Float[Tensor, "V 3"]], Float[Tensor, "V 3"]]


def system_matrix(
    faces: Int[Tensor, "F 3"], count: int, weight: float
) -> tuple[Int[Tensor, "2 N"], Float[Tensor, " N"]]:
    """Return indices and values (float64) of the sparse matrix I + λL, without repeated indices.

    L = D − A, where A is the adjacency matrix of the vertices. The diagonal matrix D contains the number of
    neighbours of each vertex. count: the number of vertices. weight: λ.
    """
    low, high, _ = sorted_edges(faces, count)
    low, high = torch.unique(torch.stack([low, high]), dim=1)
    degree = torch.bincount(torch.cat([low, high]), minlength=count).double()
    here = torch.arange(count, device=faces.device)
    indices = torch.stack([torch.cat([here, low, high]), torch.cat([here, high, low])])
    edges = torch.full((len(low),), -weight, dtype=torch.float64, device=faces.device)
    return indices, torch.cat([1 + weight * degree, edges, edges])


def make_solver(faces: Int[Tensor, "F 3"], count: int, weight: float) -> Solver:
    """Return a function that computes (I + λL)⁻¹ x for x [V,3] on the device of the faces, without autograd.

    On a CPU, the matrix is factorised once, and the result is bitwise the same in every run. On other
    devices, each call uses the conjugate gradient method. Both methods compute in float64.
    """
    indices, values = system_matrix(faces, count, weight)
    if faces.device.type == "cpu":
        return _factorised(indices, values, count)
    return _iterative(indices, values, count)


def _factorised(indices: Int[Tensor, "2 N"], values: Float[Tensor, " N"], count: int) -> Solver:
    from scipy.sparse import csc_array
    from scipy.sparse.linalg import splu

    matrix = csc_array((values.numpy(), indices.numpy()), shape=(count, count))
    # The matrix is symmetric and positive definite, so no pivoting is needed.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})

    def solve(right: Float[Tensor, "V 3"]) -> Float[Tensor, "V 3"]:
        return torch.from_numpy(factors.solve(right.detach().double().numpy())).to(right.dtype)

    return solve


def _iterative(indices: Int[Tensor, "2 N"], values: Float[Tensor, " N"], count: int) -> Solver:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        matrix = torch.sparse_coo_tensor(indices, values, (count, count), check_invariants=True)
        matrix = matrix.to_sparse_csr()

    def solve(right: Float[Tensor, "V 3"]) -> Float[Tensor, "V 3"]:
        return conjugate_gradients(lambda x: matrix @ x, right.detach().double()).to(right.dtype)

    return solve


def conjugate_gradients(
    multiply: Callable[[Tensor], Tensor], right: Float[Tensor, "V C"]
) -> Float[Tensor, "V C"]:
    """Solve A x = right for a symmetric positive definite A. Each column is solved independently.

    multiply: a function that returns A x. The result is not finite if `right` is not finite.
    """
    x, residual, direction = torch.zeros_like(right), right, right
    squared = residual.square().sum(0)
    end = squared * TOLERANCE**2
    tiny = torch.finfo(right.dtype).tiny
    for iteration in range(MAX_ITERATIONS):
        if iteration % TEST_INTERVAL == 0 and not (squared > end).any():
            break
        product = multiply(direction)
        step = squared / (direction * product).sum(0).clamp_min(tiny)
        x, residual = x + step * direction, residual - step * product
        before, squared = squared, residual.square().sum(0)
        direction = residual + squared / before.clamp_min(tiny) * direction
    return x


class _Solve(torch.autograd.Function):
    """The product (I + λL)⁻¹ x. The matrix is symmetric, so the backward pass is the same product."""

    @staticmethod
    def forward(ctx, x: Float[Tensor, "V 3"], solver: Solver) -> Float[Tensor, "V 3"]:
        ctx.solver = solver
        return solver(x)

    @staticmethod
    def backward(ctx, gradient: Float[Tensor, "V 3"]) -> tuple[Tensor, None]:
        return ctx.solver(gradient), None


def smooth(x: Float[Tensor, "V 3"], solver: Solver) -> Float[Tensor, "V 3"]:
    """Return (I + λL)⁻¹ x. The result is differentiable with respect to x."""
    return _Solve.apply(x, solver)


class UniformAdam(torch.optim.Optimizer):
    """Adam that divides all steps of a parameter tensor by the square root of the tensor's largest second
    moment.

    All values of a tensor are divided by the same number, so the direction of the smoothed gradient is kept
    (Nicolet et al., section 3.3). If `fused` is true and the attribute `found_inf` is 1, the step is skipped
    on the device, as in torch's fused optimizers.
    """

    def __init__(
        self,
        parameters,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
        fused: bool = False,
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "fused": fused})

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        skip = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, skip)

    def _update(self, parameter: Tensor, group: dict, skip: Tensor | None) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        gradient = parameter.grad
        # The step count is moved, because a checkpoint from another device may have restored it on the CPU.
        state["step"] = state["step"].to(parameter.device)
        step = state["step"] + 1
        mean = torch.lerp(state["exp_avg"], gradient, 1 - beta1)
        squared = torch.lerp(state["exp_avg_sq"], gradient.square(), 1 - beta2)
        # The bias corrections are differences of almost equal numbers, so they need float64.
        correction1, correction2 = (1 - beta ** step.double() for beta in (beta1, beta2))
        scale = (squared.max() / correction2).sqrt() + group["eps"]
        moved = parameter - group["lr"] * mean / (correction1 * scale)
        new = {"step": step, "exp_avg": mean, "exp_avg_sq": squared}
        pairs = [(parameter, moved), *((state[name], value) for name, value in new.items())]
        for old, value in pairs:
            old.copy_(value if skip is None else torch.where(skip.bool(), old, value))
