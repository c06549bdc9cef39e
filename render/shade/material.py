"""The material as a field over space: albedo, occlusion-roughness-metallic and tangent-space normal."""

from dataclasses import dataclass as record

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from render.hash_grid import HashGrid
from render.shade.normal import safe_normalize

Vector = tuple[float, float, float]
# Published configs write the albedo with a fourth number, an alpha that has no meaning here.
VectorOrRgba = Vector | tuple[float, float, float, float]
HIDDEN = 32


@dataclass(frozen=True, config=ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True))
class MaterialConfig:
    """Keys of the config about the material; every pair bounds a channel of the field."""

    bump: bool = Field(True, alias="if_use_bump", description="let the field change the normal")
    kd_min: VectorOrRgba = Field(
        (0.0, 0.0, 0.0), description="least linear RGB albedo; a 4th number is ignored"
    )
    kd_max: VectorOrRgba = Field(
        (1.0, 1.0, 1.0), description="most linear RGB albedo; a 4th number is ignored"
    )
    ks_min: Vector = Field((0.0, 0.08, 0.0), description="least occlusion, roughness, metallic")
    ks_max: Vector = Field((1.0, 1.0, 1.0), description="most occlusion, roughness, metallic")
    nrm_min: Vector = Field((-1.0, -1.0, 0.0), description="least tangent-space normal")
    nrm_max: Vector = Field((1.0, 1.0, 1.0), description="most tangent-space normal")

    @model_validator(mode="after")
    def _ordered_and_in_range(self):
        for name, least, most in (("kd", 0, 1), ("ks", 0, 1), ("nrm", -1, 1)):
            low, high = getattr(self, f"{name}_min")[:3], getattr(self, f"{name}_max")[:3]
            if not all(least <= a <= b <= most for a, b in zip(low, high, strict=True)):
                raise ValueError(
                    f"{name}_min {list(low)} and {name}_max {list(high)}: expected {least} ≤ min ≤ max ≤ {most}"
                )
        if self.nrm_min[2] < 0:
            raise ValueError(f"nrm_min {list(self.nrm_min)}: the third number must not be negative")
        return self


@record(frozen=True)
class Material:
    """At N points: kd linear RGB albedo; ks (occlusion, roughness, metallic); normal unit, tangent space, z ≥ 0."""

    kd: Float[Tensor, "N 3"]
    ks: Float[Tensor, "N 3"]
    normal: Float[Tensor, "N 3"]


class MaterialField(nn.Module):
    """Hash encoding over a box, one hidden layer of 32, no biases, 9 outputs scaled by a sigmoid into their bounds."""

    def __init__(
        self,
        config: MaterialConfig,
        box_min: Float[Tensor, "3"],
        box_max: Float[Tensor, "3"],
        hash_levels: int = 16,
        hash_log2_entries: int = 19,
        hash_finest: int = 4096,
    ):
        super().__init__()
        self.bump = config.bump
        self.encoding = HashGrid(
            box_min, box_max, levels=hash_levels, log2_entries=hash_log2_entries, finest=hash_finest
        )
        width = self.encoding(torch.zeros(1, 3)).shape[-1]
        self.network = nn.Sequential(
            nn.Linear(width, HIDDEN, bias=False), nn.ReLU(), nn.Linear(HIDDEN, 9, bias=False)
        )
        for layer in (self.network[0], self.network[2]):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        least = [*config.kd_min[:3], *config.ks_min, *config.nrm_min]
        most = [*config.kd_max[:3], *config.ks_max, *config.nrm_max]
        self.register_buffer("least", torch.tensor(least), persistent=False)
        self.register_buffer("most", torch.tensor(most), persistent=False)

    def forward(self, positions: Float[Tensor, "N 3"]) -> Material:
        """The material at world positions."""
        unit = self.network(self.encoding(positions)).sigmoid()
        kd, ks, normal = (self.least + (self.most - self.least) * unit).split(3, dim=-1)
        if not self.bump:
            flat = torch.tensor([0.0, 0.0, 1.0], dtype=normal.dtype, device=normal.device)
            return Material(kd, ks, flat.expand_as(normal))
        return Material(kd, ks, safe_normalize(normal))
