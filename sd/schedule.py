"""The schedule of a run. It defines the phase, the time range and the weight w(t) of each step.

Steps are numbered from 1 to `iter`. In the geometry stage, the first FIT_STEPS steps fit the start shape. In
the appearance stage with init_textures, they fit the material to the textures of base_mesh. These steps are
included in `iter` and `coarse_iter`. The phase also changes at step coarse_iter + 1 (Fantasia3D, arXiv
2303.13873).
"""

import dataclasses
import math
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
TimeRange = tuple[float, float]
NotNegative = Annotated[float, Ge(0)]
# A constant or [start, end]. With [start, end], the value changes linearly in the first phase after the fit
# and is `end` afterwards.
AnnealedNumber = NotNegative | tuple[NotNegative, NotNegative]
Weight = Callable[[Float[Tensor, "*B"]], Float[Tensor, "*B"]]


def one_minus_abar(abar: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return w = sigma² = 1 − abar, DreamFusion's weight."""
    return 1 - abar


def damped(abar: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return w = sqrt(abar) (1 − abar). The factor sqrt(abar) reduces the weight at large t, and with it
    over-saturation.
    """
    return abar.sqrt() * (1 - abar)


def score(abar: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return w = 1 / (1 − abar), the weight that corresponds to the score s = −e / sigma."""
    return 1 / (1 - abar)


# The (early, late) weights for each value of sds_weight_strategy in appearance_modeling.
APPEARANCE_WEIGHTS: dict[int, tuple[Weight, Weight]] = {
    0: (damped, damped),
    1: (score, score),
    2: (damped, score),
}


@dataclass(frozen=True)
class ScheduleConfig:
    """Config keys for the number of steps, the phases and their ranges of t."""

    iter: int = Field(5000, ge=1, description="number of steps, including the fit of the start shape")
    coarse_iter: int = Field(
        1000, ge=0, description="last step of the coarse phase (in appearance_modeling: of the early phase)"
    )
    init_textures: bool = Field(
        False,
        description="in appearance_modeling, steps 1 to 400 fit the material to the textures of base_mesh "
        "(GLB, glTF, OBJ with MTL); set low time ranges, so that the prior refines them",
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
    time_step_schedule: Literal["random", "annealed", "sqrt"] = Field(
        "random",
        description="how t is chosen: 'random' is uniform in the phase's range; 'annealed' is uniform in a "
        "range that moves linearly from early_time_step_range to late_time_step_range over the first phase "
        "after the fit and then stays; 'sqrt' falls from the upper to the lower end of the phase's range "
        "with the square root of the phase's progress",
    )


@dataclasses.dataclass(frozen=True)
class Phase:
    """The settings of the loss in one phase of a run.

    name: the name in logs. t_range: range of t at this step, as a fraction of the diffusion steps. weight:
    the function from abar(t) to w(t). latents_from: "image" (the 4-channel image is the latent) or "vae".
    rotate_normals: whether the normals of each view are rotated at random. fit: whether the phase is a
    regression without the prior. annealing: a number that increases from 0 at the first step after the fit to
    1 at the end of the first phase after the fit, and then stays 1.
    """

    name: str
    t_range: TimeRange
    weight: Weight
    latents_from: Literal["image", "vae"]
    rotate_normals: bool
    fit: bool = False
    annealing: float = 1.0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The phases in order, each with its last step.

    late_range: the final range of t if time_step_schedule is "annealed".
    """

    phases: tuple[tuple[int, Phase], ...]
    time_step_schedule: str = "random"
    late_range: TimeRange = (0.02, 0.5)

    @property
    def last_step(self) -> int:
        return self.phases[-1][0]

    def phase(self, step: int) -> Phase:
        """Return the phase of `step` (1 … last_step) with the t_range and the annealing of this step."""
        assert 1 <= step <= self.last_step, f"step {step} outside 1..{self.last_step}"
        before, annealing_begins = 0, True
        for end, phase in self.phases:
            if step <= end:
                break
            before, annealing_begins = end, phase.fit
        if phase.fit:
            return phase
        # The progress is 0 at the first step of the phase and 1 at the last step.
        progress = (step - before - 1) / max(end - before - 1, 1)
        annealing = progress if annealing_begins else 1.0
        t_range = self._time_range(phase.t_range, progress, annealing)
        return dataclasses.replace(phase, t_range=t_range, annealing=annealing)

    def _time_range(self, t_range: TimeRange, progress: float, annealing: float) -> TimeRange:
        if self.time_step_schedule == "annealed":
            return annealed_range(t_range, self.late_range, annealing)
        if self.time_step_schedule == "sqrt":
            return (sqrt_time(t_range, progress),) * 2
        return t_range


def annealed_range(early: TimeRange, late: TimeRange, annealing: float) -> TimeRange:
    """Return (t_min, t_max), linearly interpolated between early and late (RichDreamer, arXiv 2311.16918)."""
    return early[0] + (late[0] - early[0]) * annealing, early[1] + (late[1] - early[1]) * annealing


def sqrt_time(t_range: TimeRange, progress: float) -> float:
    """Return t = t_max − (t_max − t_min) √progress (HiFA, arXiv 2305.18766, section 3.3)."""
    return t_range[1] - (t_range[1] - t_range[0]) * math.sqrt(progress)


def annealed_number(value: float | tuple[float, float], annealing: float) -> float:
    """Return the value of an `AnnealedNumber`.

    annealing: progress from 0 to 1.
    """
    if not isinstance(value, tuple):
        return value
    return value[0] + (value[1] - value[0]) * annealing


def geometry_schedule(config: ScheduleConfig, fit: bool = True) -> Schedule:
    """Return the phases fit, coarse and fine.

    In the coarse phase, the 4-channel image of normal and mask is used as the latent. In the fine phase, the
    VAE encodes the normals.

    fit: whether there is a fit phase. It is False if the surface has no start shape.
    """
    early, late = config.early_time_step_range, config.late_time_step_range
    fit_end = min(FIT_STEPS, config.iter) if fit else 0
    coarse_end = min(max(config.coarse_iter, fit_end), config.iter)
    # If coarse_iter is at most fit_end, there is no coarse phase.
    return _joined(
        config,
        (fit_end, Phase("fit", early, one_minus_abar, "image", rotate_normals=False, fit=True)),
        (coarse_end, Phase("coarse", early, one_minus_abar, "image", rotate_normals=True)),
        (config.iter, Phase("fine", late, damped, "vae", rotate_normals=False)),
    )


def appearance_schedule(config: ScheduleConfig) -> Schedule:
    """Return the phases early and late. If init_textures is set, the phase that fits the textures comes
    first.

    Early and late use the VAE and the weights of sds_weight_strategy.
    """
    early_weight, late_weight = APPEARANCE_WEIGHTS[config.sds_weight_strategy]
    early = config.early_time_step_range
    fit_end = min(FIT_STEPS, config.iter) if config.init_textures else 0
    return _joined(
        config,
        (fit_end, Phase("fit", early, early_weight, "vae", rotate_normals=False, fit=True)),
        (
            min(config.coarse_iter, config.iter),
            Phase("early", early, early_weight, "vae", rotate_normals=False),
        ),
        (config.iter, Phase("late", config.late_time_step_range, late_weight, "vae", rotate_normals=False)),
    )


def _joined(config: ScheduleConfig, *phases: tuple[int, Phase]) -> Schedule:
    """Return the schedule of the phases that have at least one step."""
    kept, previous = [], 0
    for end, phase in phases:
        if end > previous:
            kept.append((end, phase))
            previous = end
    return Schedule(tuple(kept), config.time_step_schedule, config.late_time_step_range)


def draw_timesteps(
    phase: Phase, count: int, num_train_timesteps: int, generator: torch.Generator, views: int = 1
) -> torch.Tensor:
    """Draw integer timesteps [count] uniformly from [steps · lo, steps · hi]. (lo, hi) is the t_range of the
    phase, and steps is num_train_timesteps. All timesteps are below num_train_timesteps.

    views: the number of consecutive images that get the same t.
    """
    low, high = (min(round(num_train_timesteps * end), num_train_timesteps - 1) for end in phase.t_range)
    drawn = torch.randint(low, high + 1, (count // views,), generator=generator)
    return drawn.repeat_interleave(views)
