"""The SDF network: a hash encoding and a small MLP that outputs signed distance and vertex offset."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from render.encoding.hash_grid import HashGrid, PrecomputedEncoding
from render.kernels.available import triton_works


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
        self, points: Float[Tensor, "N 3"] | PrecomputedEncoding, rows: Int[Tensor, " R"] | None = None
    ) -> tuple[Float[Tensor, " R"], Float[Tensor, "R 3"]]:
        """Return s [R] and d [R,3] at world points, or at the points of a PrecomputedEncoding of
        self.encoding.

        rows: indices of the points to evaluate, or None for all points. Indices require a
        PrecomputedEncoding.
        """
        out = self.raw_output(points, rows)
        return out[:, 0], out[:, 1:]

    def raw_output(
        self, points: Float[Tensor, "N 3"] | PrecomputedEncoding, rows: Int[Tensor, " R"] | None = None
    ) -> Float[Tensor, "R 4"]:
        """Return [R,4] with s in column 0 and d in columns 1 to 3."""
        encoded = points(rows) if isinstance(points, PrecomputedEncoding) else self.encoding(points)
        return self.mlp(encoded)

    @torch.no_grad()
    def distances(self, points: PrecomputedEncoding) -> Float[Tensor, " N"]:
        """Return s at all precomputed points without gradient. On CUDA, one fused kernel is used."""
        encoded = points()
        # The Triton kernel is used only if Triton works on the device.
        if encoded.device.type == "cuda" and triton_works(encoded.device):
            from geometry.kernels import sdf_network_triton

            weights = [layer.weight for layer in self.mlp[::2]]
            if sdf_network_triton.can_run(weights[0]):
                return sdf_network_triton.distances(encoded, *weights)
        return self.mlp(encoded)[:, 0]
