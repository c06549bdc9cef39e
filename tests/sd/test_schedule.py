"""Compare phases, weights and timesteps with the table in sd/README.md."""

import math

import pytest
import torch

from sd.schedule import (
    APPEARANCE_WEIGHTS,
    FIT_STEPS,
    Phase,
    ScheduleConfig,
    annealed_number,
    appearance_schedule,
    draw_timesteps,
    geometry_schedule,
    one_minus_abar,
)

ABAR = torch.tensor([0.9, 0.5, 0.1])


def test_fine_phase_starts_one_step_after_coarse_iter():
    schedule = geometry_schedule(ScheduleConfig(iter=3000, coarse_iter=1500))
    assert schedule.last_step == 3000
    names = [schedule.phase(step).name for step in (1, FIT_STEPS, FIT_STEPS + 1, 1500, 1501, 3000)]
    assert names == ["fit", "fit", "coarse", "coarse", "fine", "fine"]
    coarse, fine = schedule.phase(1500), schedule.phase(1501)
    assert (coarse.latents_from, coarse.rotate_normals) == ("image", True)
    assert (fine.latents_from, fine.rotate_normals) == ("vae", False)


@pytest.mark.parametrize(("coarse_iter", "expected"), [(400, ["fit", "fine"]), (0, ["fit", "fine"])])
def test_only_add_detail_has_no_coarse_phase(coarse_iter, expected):
    schedule = geometry_schedule(ScheduleConfig(iter=1000, coarse_iter=coarse_iter))
    assert [phase.name for _, phase in schedule.phases] == expected


def test_every_key_switches_at_the_same_step():
    config = ScheduleConfig(
        iter=900, coarse_iter=600, early_time_step_range=(0.4, 0.6), late_time_step_range=(0.02, 0.5)
    )
    for schedule in (geometry_schedule(config), appearance_schedule(config)):
        assert schedule.phase(600).t_range == (0.4, 0.6)
        assert schedule.phase(601).t_range == (0.02, 0.5)


def test_geometry_weights():
    schedule = geometry_schedule(ScheduleConfig(iter=3000, coarse_iter=1500))
    for step, expected in (
        (1000, [0.1, 0.5, 0.9]),
        (2000, [math.sqrt(a) * (1 - a) for a in (0.9, 0.5, 0.1)]),
    ):
        assert torch.allclose(schedule.phase(step).weight(ABAR), torch.tensor(expected))


@pytest.mark.parametrize("strategy", [0, 1, 2])
def test_appearance_weights(strategy):
    damped = [math.sqrt(a) * (1 - a) for a in (0.9, 0.5, 0.1)]
    inverse = [1 / (1 - a) for a in (0.9, 0.5, 0.1)]
    early, late = {0: (damped, damped), 1: (inverse, inverse), 2: (damped, inverse)}[strategy]
    config = ScheduleConfig(iter=20, coarse_iter=10, sds_weight_strategy=strategy)
    schedule = appearance_schedule(config)
    assert torch.allclose(schedule.phase(10).weight(ABAR), torch.tensor(early))
    assert torch.allclose(schedule.phase(11).weight(ABAR), torch.tensor(late))
    assert {schedule.phase(step).latents_from for step in (10, 11)} == {"vae"}


def test_weights_are_positive_and_differ_between_strategies():
    abar = torch.linspace(0.005, 0.9995, 200)
    pairs = {}
    for strategy in APPEARANCE_WEIGHTS:
        config = ScheduleConfig(iter=20, coarse_iter=10, sds_weight_strategy=strategy)
        weights = [appearance_schedule(config).phase(step).weight(abar) for step in (10, 11)]
        assert all(weight.isfinite().all() and (weight > 0).all() for weight in weights), strategy
        pairs[strategy] = torch.cat(weights)
    assert len(torch.stack(list(pairs.values())).unique(dim=0)) == len(APPEARANCE_WEIGHTS)


def test_timesteps_are_uniform_over_the_closed_range():
    phase = Phase("p", (0.02, 0.5), one_minus_abar, "vae", rotate_normals=False)
    drawn = draw_timesteps(phase, 200_000, 1000, torch.Generator().manual_seed(0))
    assert drawn.min() == 20 and drawn.max() == 500
    counts = torch.bincount(drawn)[20:]
    assert len(counts) == 481
    assert (counts.float() - 200_000 / 481).abs().max() < 6 * math.sqrt(200_000 / 481)


@pytest.mark.parametrize(
    ("t_range", "least", "most"),
    [((0.98, 1.0), 980, 999), ((1.0, 1.0), 999, 999), ((0.0, 0.0), 0, 0), ((0.57, 0.57), 570, 570)],
)
def test_timesteps_stay_within_the_schedule(t_range, least, most):
    phase = Phase("p", t_range, one_minus_abar, "vae", rotate_normals=False)
    drawn = draw_timesteps(phase, 5000, 1000, torch.Generator().manual_seed(0))
    assert drawn.min() == least and drawn.max() == most


def time_steps(kind, **keys):
    ranges = {"early_time_step_range": (0.5, 0.98), "late_time_step_range": (0.02, 0.5)}
    values = {"iter": 800, "coarse_iter": 601, "time_step_schedule": kind, **ranges, **keys}
    return geometry_schedule(ScheduleConfig(**values))


def test_annealed_range_is_linear_then_constant():
    schedule = time_steps("annealed")
    # The coarse phase consists of the steps 401 to 601.
    for step, expected in ((401, (0.5, 0.98)), (501, (0.26, 0.74)), (601, (0.02, 0.5)), (800, (0.02, 0.5))):
        assert schedule.phase(step).t_range == pytest.approx(expected)
    only_fine = time_steps("annealed", coarse_iter=0)
    assert only_fine.phase(401).t_range == pytest.approx((0.02, 0.5))


def test_annealed_range_in_appearance_modeling():
    config = ScheduleConfig(
        iter=30, coarse_iter=21, time_step_schedule="annealed", early_time_step_range=(0.5, 0.98)
    )
    schedule = appearance_schedule(config)
    assert schedule.phase(11).t_range == pytest.approx((0.26, 0.74))
    assert schedule.phase(25).t_range == (0.02, 0.5)


def test_sqrt_time_in_each_phase():
    schedule = time_steps("sqrt")
    for step, expected in ((401, 0.98), (451, 0.98 - 0.48 / 2), (601, 0.5), (602, 0.5), (800, 0.02)):
        assert schedule.phase(step).t_range == pytest.approx((expected, expected))
    drawn = draw_timesteps(schedule.phase(451), 50, 1000, torch.Generator().manual_seed(0))
    assert drawn.unique().tolist() == [740]


def test_annealing_is_0_after_the_fit_and_1_from_the_end_of_that_phase():
    schedule = time_steps("random")
    found = [schedule.phase(step).annealing for step in (401, 501, 601, 602, 800)]
    assert found == pytest.approx([0, 0.5, 1, 1, 1])
    assert schedule.phase(501).t_range == (0.5, 0.98)
    assert time_steps("random", iter=602, coarse_iter=601).phase(602).annealing == 1


def test_annealed_numbers():
    assert annealed_number(0.3, 0.7) == 0.3
    assert annealed_number((1.0, 3.0), 0.25) == 1.5
