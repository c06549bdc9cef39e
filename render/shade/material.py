"""The material as a field over space. It consists of albedo, occlusion, roughness, metallic and normal."""

from dataclasses import dataclass as record
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from render.encoding.hash_grid import HashGrid
from render.shade.normals import safe_normalize

Unit = Annotated[float, Field(ge=0, le=1)]
Signed = Annotated[float, Field(ge=-1, le=1)]
# Published configs have albedo bounds with a fourth number. It is an alpha value and is ignored.
Albedo = tuple[Unit, Unit, Unit] | tuple[Unit, Unit, Unit, float]
Surface = tuple[Unit, Unit, Unit]
Normal = tuple[Signed, Signed, Unit]
HIDDEN = 32


@dataclass(frozen=True, config=ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True))
class MaterialConfig:
    """Config keys of the material. Keys that end in _min or _max are bounds of the field's channels."""

    bump: bool = Field(True, alias="if_use_bump", description="learn a tangent-space normal map")
    kd_min: Albedo = Field((0.0, 0.0, 0.0), description="smallest albedo, linear; a fourth number is ignored")
    kd_max: Albedo = Field((1.0, 1.0, 1.0), description="largest albedo, linear; a fourth number is ignored")
    ks_min: Surface = Field((0.0, 0.08, 0.0), description="smallest occlusion, roughness, metallic")
    ks_max: Surface = Field((1.0, 1.0, 1.0), description="largest occlusion, roughness, metallic")
    nrm_min: Normal = Field((-1.0, -1.0, 0.0), description="smallest tangent-space normal")
    nrm_max: Normal = Field((1.0, 1.0, 1.0), description="largest tangent-space normal")


@record(frozen=True)
class Material:
    """kd (linear albedo), ks (occlusion, roughness, metallic) and tangent-space unit normal of N points."""

    kd: Float[Tensor, "N 3"]
    ks: Float[Tensor, "N 3"]
    normal: Float[Tensor, "N 3"]


class MaterialField(nn.Module):
    """A hash encoding over a box and an MLP with one hidden layer of 32 units, 9 outputs and no biases.

    A sigmoid maps each output to the bounds of its channel. bumpy: whether the normal is learned.
    """

    def __init__(
        self,
        config: MaterialConfig,
        box_min: Float[Tensor, "3"],
        box_max: Float[Tensor, "3"],
        hash_n_levels: int = 16,
        hash_log2_hashmap_size: int = 19,
        hash_max_resolution: int = 4096,
    ):
        super().__init__()
        self.bumpy = config.bump
        self.encoding = HashGrid(
            box_min,
            box_max,
            n_levels=hash_n_levels,
            log2_hashmap_size=hash_log2_hashmap_size,
            max_resolution=hash_max_resolution,
        )
        self.network = nn.Sequential(
            nn.Linear(self.encoding.width, HIDDEN, bias=False), nn.ReLU(), nn.Linear(HIDDEN, 9, bias=False)
        )
        for layer in (self.network[0], self.network[2]):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        least = [*config.kd_min[:3], *config.ks_min, *config.nrm_min]
        most = [*config.kd_max[:3], *config.ks_max, *config.nrm_max]
        self.register_buffer("least", torch.tensor(least), persistent=False)
        self.register_buffer("span", torch.tensor(most) - self.least, persistent=False)
        self.register_buffer("flat", torch.tensor([0.0, 0.0, 1.0]), persistent=False)

    def forward(self, positions: Float[Tensor, "N 3"]) -> Material:
        """Return the material at world positions."""
        unit = self.network(self.encoding(positions)).sigmoid()
        kd, ks, normal = torch.addcmul(self.least, self.span, unit).split(3, dim=-1)
        return Material(kd, ks, safe_normalize(normal) if self.bumpy else self.flat.expand_as(normal))
