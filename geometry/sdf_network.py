"""The implicit field: hash encoding and a small MLP that gives signed distance and vertex offset."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from render.hash_grid import HashGrid, PinnedEncoding


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
        self, points: Float[Tensor, "N 3"] | PinnedEncoding, rows: Int[Tensor, " R"] | None = None
    ) -> tuple[Float[Tensor, " R"], Float[Tensor, "R 3"]]:
        """(s, d) at world points, or at points that `self.encoding.pin` prepared: all, or those in rows."""
        encoded = points(rows) if isinstance(points, PinnedEncoding) else self.encoding(points)
        out = self.mlp(encoded)
        return out[:, 0], out[:, 1:]
