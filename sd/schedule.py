"""The schedule of a run: which phase a step is in, its time range and its weight w(t).

Source: METHOD sections 1, 2 and 5. Steps count from 1 to `iter`; geometry spends steps 1..400 on the fit of
the start shape, which count inside `iter` and `coarse_iter`. The phase changes once, at step coarse_iter + 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

FIT_STEPS = 400

TimeFraction = Annotated[float, Ge(0), Le(1)]
Weight = Callable[[Float[Tensor, "*B"]], Float[Tensor, "*B"]]


def one_minus_abar(abar: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """w = sigma² = 1 − abar, DreamFusion's weight."""
    return 1 - abar


def damped(abar: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """w = sqrt(abar) (1 − abar): falls as t grows, against over-saturation at large t."""
    return abar.sqrt() * (1 - abar)


def score(abar: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """w = 1 / (1 − abar): the weight of the score itself, s = −e / sigma."""
    return 1 / (1 - abar)


# (early, late) weight of each value of sds_weight_strategy in appearance_modeling.
APPEARANCE_WEIGHTS: dict[int, tuple[Weight, Weight]] = {
    0: (damped, damped),
    1: (score, score),
    2: (damped, score),
}


@dataclass(frozen=True)
class ScheduleConfig:
    """How many iterations, and what the two phases draw from."""

    iter: int = Field(5000, ge=1, description="number of steps, including the fit of the start shape")
    coarse_iter: int = Field(
        1000, ge=0, description="last step of the coarse phase (in appearance_modeling: of the early phase)"
    )
    sds_weight_strategy: Literal[*APPEARANCE_WEIGHTS] = Field(
        0, description="weight w(t) in appearance_modeling, see sd/README.md; geometry_modeling ignores it"
    )
    early_time_step_range: tuple[TimeFraction, TimeFraction] = Field(
        (0.02, 0.5), description="range of t as fractions of the diffusion steps, up to step coarse_iter"
    )
    late_time_step_range: tuple[TimeFraction, TimeFraction] = Field(
        (0.02, 0.5), description="the same after coarse_iter"
    )


@dataclasses.dataclass(frozen=True)
class Phase:
    """What one stretch of the run asks of the prior.

    name is for people; t_range is a fraction of the diffusion steps; weight maps abar(t) to w(t);
    latents_from is "image" (the 4-channel image is the latent) or "vae"; rotate_normals turns each view's
    normals at random; fit marks the start-shape regression, which asks the prior nothing.
    """

    name: str
    t_range: tuple[float, float]
    weight: Weight
    latents_from: Literal["image", "vae"]
    rotate_normals: bool
    fit: bool = False


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Phases by their last step, in order."""

    phases: tuple[tuple[int, Phase], ...]

    @property
    def last_step(self) -> int:
        return self.phases[-1][0]

    def phase(self, step: int) -> Phase:
        """The phase of `step` (1 … last_step)."""
        assert 1 <= step <= self.last_step, f"step {step} outside 1..{self.last_step}"
        return next(phase for end, phase in self.phases if step <= end)


def geometry_schedule(config: ScheduleConfig) -> Schedule:
    """Fit, then coarse (normal and mask as the latent), then fine (normals through the VAE)."""
    early, late = config.early_time_step_range, config.late_time_step_range
    fit_end = min(FIT_STEPS, config.iter)
    coarse_end = min(max(config.coarse_iter, fit_end), config.iter)
    # The fit stands in both phases' place where coarse_iter is smaller than it: "only add detail".
    return _joined(
        (fit_end, Phase("fit", early, one_minus_abar, "image", rotate_normals=False, fit=True)),
        (coarse_end, Phase("coarse", early, one_minus_abar, "image", rotate_normals=True)),
        (config.iter, Phase("fine", late, damped, "vae", rotate_normals=False)),
    )


def appearance_schedule(config: ScheduleConfig) -> Schedule:
    """Early and late, both through the VAE, weighted by sds_weight_strategy."""
    early_weight, late_weight = APPEARANCE_WEIGHTS[config.sds_weight_strategy]
    return _joined(
        (
            min(config.coarse_iter, config.iter),
            Phase("early", config.early_time_step_range, early_weight, "vae", rotate_normals=False),
        ),
        (config.iter, Phase("late", config.late_time_step_range, late_weight, "vae", rotate_normals=False)),
    )


def _joined(*phases: tuple[int, Phase]) -> Schedule:
    """Drop the phases that have no step of their own."""
    kept, previous = [], 0
    for end, phase in phases:
        if end > previous:
            kept.append((end, phase))
            previous = end
    return Schedule(tuple(kept))


def draw_timesteps(
    phase: Phase, count: int, num_train_timesteps: int, generator: torch.Generator
) -> torch.Tensor:
    """Integer timesteps [count], uniform in [steps·lo, steps·hi] and below num_train_timesteps."""
    low, high = (min(round(num_train_timesteps * end), num_train_timesteps - 1) for end in phase.t_range)
    return torch.randint(low, high + 1, (count,), generator=generator)
