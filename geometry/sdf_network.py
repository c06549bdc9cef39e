"""The implicit field: hash encoding and a small MLP that gives signed distance and vertex offset."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from render.encoding.hash_grid import HashGrid, PrecomputedEncoding
from render.kernels.available import triton_works


class SdfNetwork(nn.Module):
    """Signed distance s and raw offset d over points: encoding, two hidden layers of 32, ReLU, no biases.

    Weights start Kaiming-uniform, so s and d start near 0 (the encoding does). Both are unbounded.
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
        """(s, d) at world points, or at points that `self.encoding.pin` prepared: all, or those in rows."""
        out = self.answers(points, rows)
        return out[:, 0], out[:, 1:]

    def answers(
        self, points: Float[Tensor, "N 3"] | PrecomputedEncoding, rows: Int[Tensor, " R"] | None = None
    ) -> Float[Tensor, "R 4"]:
        """s and d of a point in one row."""
        encoded = points(rows) if isinstance(points, PrecomputedEncoding) else self.encoding(points)
        return self.mlp(encoded)

    @torch.no_grad()
    def distances(self, points: PrecomputedEncoding) -> Float[Tensor, " N"]:
        """s at all pinned points, without a gradient; on CUDA in fewer passes and rounded differently."""
        encoded = points()
        # Where the encoding's kernels run, so does this one.
        if encoded.device.type == "cuda" and triton_works(encoded.device):
            from geometry.kernels import sdf_network_triton

            weights = [layer.weight for layer in self.mlp[::2]]
            if sdf_network_triton.can_run(weights[0]):
                return sdf_network_triton.distances(encoded, *weights)
        return self.mlp(encoded)[:, 0]
