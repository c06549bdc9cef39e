"""The SDF network: a hash encoding and a small MLP that outputs signed distance and vertex offset."""

from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from render.encoding.hash_grid import HashGrid, PrecomputedEncoding
from render.kernels.available import triton_runs_on


class SdfNetwork(nn.Module):
    """A network from points to signed distance s and raw offset d.

    It has two hidden layers with 32 units each, ReLU activations and no biases. The initial weights are
    Kaiming-uniform. The initial encoding is near 0, so s and d are near 0 at the start. s and d are
    unbounded.
    """

    def __init__(self, encoding: HashGrid, hidden: int = 32, generator: torch.Generator | None = None):
        super().__init__()
        self.encoding = encoding
        layers: list[nn.Module] = []
        for width_in, width_out in ((encoding.width, hidden), (hidden, hidden), (hidden, 4)):
            linear = nn.Linear(width_in, width_out, bias=False)
            nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu", generator=generator)
            layers += [linear, nn.ReLU()]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(
        self,
        points: Float[Tensor, "N 3"] | PrecomputedEncoding,
        rows: Int[Tensor, " R"] | None = None,
        everywhere: Float[Tensor, "N W"] | None = None,
    ) -> tuple[Float[Tensor, " R"], Float[Tensor, "R 3"]]:
        """Return s [R] and d [R,3] at world points, or at the points of a PrecomputedEncoding of
        self.encoding.

        rows: indices of the points to evaluate, or None for all points. Indices require a
        PrecomputedEncoding. everywhere: the encoding of all points, if it is already computed (see
        PrecomputedEncoding).
        """
        out = self.raw_output(points, rows, everywhere)
        return out[:, 0], out[:, 1:]

    def raw_output(
        self,
        points: Float[Tensor, "N 3"] | PrecomputedEncoding,
        rows: Int[Tensor, " R"] | None = None,
        everywhere: Float[Tensor, "N W"] | None = None,
    ) -> Float[Tensor, "R 4"]:
        """Return [R,4] with s in column 0 and d in columns 1 to 3. The arguments are those of `forward`."""
        if isinstance(points, PrecomputedEncoding):
            encoded = points(rows, everywhere)
        else:
            encoded = self.encoding(points)
        kernels = self._kernels(encoded)
        return self.mlp(encoded) if kernels is None else kernels.mlp(encoded, *self._weights())

    @torch.no_grad()
    def distances(self, encoded: Float[Tensor, "N W"]) -> Float[Tensor, " N"]:
        """Return s of encoded points without gradient."""
        kernels = self._kernels(encoded)
        if kernels is None:
            return self.mlp(encoded)[:, 0]
        return kernels.distances(encoded, *self._weights())

    def _weights(self) -> list[Tensor]:
        return [layer.weight for layer in self.mlp[::2]]

    def _kernels(self, encoded: Float[Tensor, "N W"]) -> ModuleType | None:
        """Return the module with the fused kernels of the MLP, or None if they cannot run."""
        if not triton_runs_on(encoded.device):
            return None
        from geometry.kernels import sdf_network_triton

        return sdf_network_triton if sdf_network_triton.can_run(*self._weights()) else None
