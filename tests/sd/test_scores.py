"""Test identities of the scores in float64, and the mean gradients of the scores with Gaussian priors."""

import math

import pytest
import torch
from gaussian_prior import GaussianPrior, gaussian_noise

from render.camera import orbit
from sd.guidance import Guidance, GuidanceConfig
from sd.schedule import Phase, one_minus_abar
from sd.scores import (
    Predictions,
    classifier_free,
    csd,
    nfsd,
    perp_neg,
    perpendicular,
    score_of,
    sds,
    view_weights,
    vsd,
    x0_gradient,
)
from sd.vsd import azimuths

CPU = torch.device("cpu")
SHAPE = (3, 4, 5, 5)


def draws(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


def equal(a, b):
    return torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def inner(a, b):
    return (a * b).sum((1, 2, 3))


def test_sds_is_the_guided_noise_minus_the_noise():
    e_c, e_n, noise = draws(3)
    assert equal(sds(classifier_free(e_n, e_c, 7.5), noise), 7.5 * e_c - 6.5 * e_n - noise)


@pytest.mark.parametrize("scale", [0.0, 1.0, 9.0])
def test_csd_with_one_negative_is_a_difference_of_two_sds(scale):
    e_c, e_n, noise = draws(3)
    higher, lower = (sds(classifier_free(e_n, e_c, s), noise) for s in (scale + 1, scale))
    for negative_weight in (0.0, 1.0, 0.3):
        assert equal(csd(e_c, e_n, e_n, 1.0, negative_weight), higher - lower)


def test_csd_weighs_three_predictions_whose_weights_sum_to_zero():
    e_c, e_u, e_n = draws(3)
    found = csd(e_c, e_u, e_n, 5.0, 2.0)
    assert equal(found, 5 * e_c - 3 * e_u - 2 * e_n)
    assert equal(csd(e_c + 1, e_u + 1, e_n + 1, 5.0, 2.0), found)


def test_nfsd_has_one_branch_for_small_and_one_for_large_times():
    e_c, e_u, e_n = draws(3)
    found = nfsd(e_c, e_u, e_n, 7.0, torch.tensor([0.1999, 0.2, 0.9], dtype=torch.float64))
    assert equal(found[0], (e_u + 7 * (e_c - e_u))[0])
    assert equal(found[1:], (e_u - e_n + 7 * (e_c - e_u))[1:])


def test_vsd_with_an_untrained_lora_is_the_guidance_direction():
    e_c, e_n = draws(2)
    assert equal(vsd(classifier_free(e_n, e_c, 7.5), e_c), 6.5 * (e_c - e_n))


def test_perp_neg_changes_only_what_is_perpendicular_to_the_prompt():
    e_u, e_c, e_1, e_2 = draws(4)
    weights = [torch.tensor([-0.5, -1.0, 0.0], dtype=torch.float64)] * 2
    positive = e_c - e_u
    change = perp_neg(e_u, e_c, [e_1, e_2], weights) - e_c
    assert inner(change, positive).abs().max() < 1e-10
    assert inner(change, change)[:2].min() > 1 and equal(change[2], torch.zeros_like(change[2]))
    # If the direction of another side is perpendicular to the prompt, perp_neg adds this direction times its
    # weight, which is negative.
    across = perpendicular(e_1 - e_u, positive)
    found = perp_neg(e_u, e_c, [e_u + across], weights[:1])
    assert equal(found, e_c + weights[0][:, None, None, None] * across)


def test_perp_neg_ignores_a_negative_along_the_prompt():
    e_u, e_c = draws(2)
    weight = [torch.full((3,), -1.0, dtype=torch.float64)]
    assert equal(perp_neg(e_u, e_c, [e_u - 0.7 * (e_c - e_u)], weight), e_c)
    assert equal(perp_neg(e_u, e_c, [], []), e_c)


def test_perpendicular_of_a_zero_axis_is_the_vector():
    (vector,) = draws(1)
    assert torch.equal(perpendicular(vector, torch.zeros_like(vector)), vector)


def test_view_weights_are_0_for_equal_and_1_for_opposite_sides():
    azimuth = torch.tensor([0.0, math.pi / 2, -math.pi / 2, math.pi, math.pi / 4], dtype=torch.float64)
    half = math.sin(math.pi / 8) ** 2
    expected = [[0, -0.5, -1], [-0.5, 0, -0.5], [-0.5, 0, -0.5], [-1, -0.5, 0], [-half, -half, half - 1]]
    assert equal(view_weights(azimuth), torch.tensor(expected, dtype=torch.float64))


def test_score_of_selects_the_score():
    e_c, e_u, e_n, phi, noise = draws(5)
    predicted = Predictions(e_n, e_c, e_u, phi)
    time = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    expected = {
        "sds": sds(classifier_free(e_n, e_c, 3.0), noise),
        "csd": csd(e_c, e_u, e_n, 3.0, 1.5),
        "nfsd": nfsd(e_c, e_u, e_n, 3.0, time),
        "vsd": vsd(classifier_free(e_n, e_c, 3.0), phi),
    }
    for name, value in expected.items():
        assert equal(score_of(name, predicted, noise, time, 3.0, 0.5), value)


# MU_C, MU_U and MU_N are the means of the prior for the prompt, the empty text and the negative text.
MU_C, MU_U, MU_N = 0.9, -0.4, 0.3


@pytest.mark.parametrize("score", ["sds", "csd", "nfsd small t", "nfsd large t", "vsd"])
@pytest.mark.parametrize("x", [-1.0, 0.5])
def test_mean_gradient_against_a_gaussian_prior_is_the_analytic_one(score, x):
    count, variance, scale, negative_share = 200_000, 0.3, 4.0, 0.25
    abar = torch.tensor(0.6, dtype=torch.float64)
    noise = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noisy = abar.sqrt() * x + (1 - abar).sqrt() * noise
    e_c, e_u, e_n, phi = (gaussian_noise(noisy, abar, mean, variance) for mean in (MU_C, MU_U, MU_N, x))
    time = torch.full((count,), 0.1 if score.endswith("small t") else 0.5, dtype=torch.float64)
    found = score_of(
        score.split()[0], Predictions(e_n, e_c, e_u, phi), noise, time, scale, negative_share
    ).flatten()
    # For a prior with mean μ, the expectation of e − ε over the noise is k (x − μ).
    k = ((1 - abar) * abar).sqrt() / (abar * variance + 1 - abar)
    guided = MU_N + scale * (MU_C - MU_N)
    expected = {
        "sds": k * (x - guided),
        "csd": -k * scale * (MU_C + (negative_share - 1) * MU_U - negative_share * MU_N),
        "nfsd small t": k * (x - MU_U - scale * (MU_C - MU_U)),
        "nfsd large t": -k * (MU_U - MU_N + scale * (MU_C - MU_U)),
        "vsd": k * (x - guided),
    }[score]
    error = (found.mean() - expected).abs()
    assert error < 5 * found.std() / math.sqrt(count) + 1e-12
    if score in ("csd", "nfsd large t", "vsd"):
        # With equal variances, these scores do not depend on the noise.
        assert found.std() < 1e-12


def guided_run(config, steps=200, views=4, times=(0.3, 0.7), rate=0.3):
    """Return the latents after gradient descent from 0, and the guidance.

    Each gradient is computed by Guidance with a GaussianPrior and the score that the config selects.
    """
    prior = GaussianPrior()
    guidance = Guidance(prior, config, "negative", CPU)
    phase = Phase("p", times, one_minus_abar, "image", rotate_normals=False)
    image = torch.zeros(views, 4, 4, 4, requires_grad=True)
    optimizers = [torch.optim.SGD([image], lr=rate), *guidance.optimizers]
    generator, cameras = torch.Generator().manual_seed(1), orbit(views, (8, 8)).world_to_clip
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        sample = guidance.sample(torch.zeros(views, dtype=torch.long), phase, generator, cameras)
        guidance(image, sample, phase)[0].backward()
        for optimizer in optimizers:
            optimizer.step()
    return image.detach(), guidance


# GaussianPrior has mean 0 for the prompt and 3/4 for the negative text. The guided mean is 3/4 (1 − scale).
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_descent_with_sds_ends_at_the_guided_mean(scale):
    image, _ = guided_run(GuidanceConfig(text="x", guidance_weight=scale))
    # Averaging over all latents reduces the noise of the last steps.
    assert (image.mean() - 0.75 * (1 - scale)).abs() < 0.04


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_descent_with_vsd_ends_at_the_guided_mean_without_noise(scale):
    config = GuidanceConfig(text="x", guidance_weight=scale, score="vsd", vsd_learning_rate=0.05)
    image, guidance = guided_run(config, steps=500, times=(0.5, 0.5), rate=0.03)
    assert (image.mean() - 0.75 * (1 - scale)).abs() < 0.05
    assert (guidance.lora.mean - 0.75 * (1 - scale)).abs() < 0.05
    # The noise of x_t cancels in e_cfg − e_φ, so all latents have the same gradient.
    assert image.std() < 1e-4


def test_descent_with_csd_between_equal_variances_diverges():
    config = GuidanceConfig(text="x", guidance_weight=1.0, score="csd")
    half, whole = (guided_run(config, steps=steps)[0] for steps in (50, 100))
    # The negative text has a larger mean than the prompt, so the latents decrease at a constant rate.
    assert half.mean() < -1
    assert (whole.mean() / half.mean() - 2).abs() < 0.1


def x0_case(rescale, views, guidance_weight=5.0):
    """Return the gradient of the x0 loss for random predictions, and the inputs of the loss."""
    generator = torch.Generator().manual_seed(4)
    latents, noise, e_n, e_c = torch.randn(4, 4, 3, 5, 5, generator=generator, dtype=torch.float64)
    abar = torch.tensor([0.9, 0.9, 0.3, 0.3], dtype=torch.float64)
    noisy = abar[:, None, None, None].sqrt() * latents + (1 - abar)[:, None, None, None].sqrt() * noise
    keys = {"guidance_weight": guidance_weight, "rescale": rescale, "views": views}
    found = x0_gradient(latents, noisy, abar, Predictions(e_n, e_c), **keys)
    return found, latents, noisy, noise, abar[:, None, None, None], e_n, e_c


def test_the_x0_loss_without_rescaling_is_sds_with_another_weight():
    found, _, _, noise, abar, e_n, e_c = x0_case(rescale=0.0, views=1)
    expected = ((1 - abar) / abar).sqrt() * sds(classifier_free(e_n, e_c, 5.0), noise)
    assert torch.allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize("rescale", [0.5, 1.0])
def test_the_rescaled_prediction_has_the_deviation_of_the_conditional_one(views, rescale):
    """ẑ is φ ẑ0 σ(ẑ0 of the prompt) / σ(ẑ0) + (1 − φ) ẑ0. σ is computed over all views of an object."""
    found, latents, noisy, _, abar, e_n, e_c = x0_case(rescale, views)
    guided = (noisy - (1 - abar).sqrt() * (e_n + 5 * (e_c - e_n))) / abar.sqrt()
    conditional = (noisy - (1 - abar).sqrt() * e_c) / abar.sqrt()
    expected = torch.empty_like(found)
    for first in range(0, 4, views):
        rows = slice(first, first + views)
        factor = conditional[rows].std() / guided[rows].std()
        expected[rows] = latents[rows] - (rescale * factor + 1 - rescale) * guided[rows]
    assert torch.allclose(found, expected, rtol=1e-10)
    if rescale == 1:
        assert (latents - found)[:views].std().item() == pytest.approx(conditional[:views].std().item())


def test_the_x0_loss_is_half_the_squared_distance_to_its_target():
    found, latents, noisy, _, abar, e_n, e_c = x0_case(0.5, 4)
    target = latents - found
    x = latents.clone().requires_grad_()
    (0.5 * (x - target).square().sum()).backward()
    assert torch.allclose(x.grad, found)


def test_distillation_with_the_x0_loss_reaches_the_guided_mean():
    """With a Gaussian prior, the latents approach the guided mean.

    A larger guidance weight moves the guided mean away from the mean of the negative text.
    """
    prior = GaussianPrior(variance=0.05)
    config = GuidanceConfig(text="x", score="x0", x0_rescale=0.0, guidance_weight=1.0)
    guidance = Guidance(prior, config, "negative", torch.device("cpu"))
    phase = Phase("p", (0.3, 0.7), one_minus_abar, "image", rotate_normals=False)
    image = torch.full((8, 4, 4, 4), 2.0)
    for step in range(60):
        x = image.clone().requires_grad_()
        sample = guidance.sample(torch.ones(8).long(), phase, torch.Generator().manual_seed(step))
        guidance(x, sample, phase)[0].backward()
        image = image - 0.2 * x.grad
    assert image.mean().item() == pytest.approx(0.25, abs=0.05)


def test_azimuths_are_those_of_the_camera_positions():
    """At azimuth a, the camera is in the direction (−sin a, ·, cos a) from the origin."""
    cameras = orbit(7, (8, 8), 25.0)
    expected = torch.atan2(-cameras.position[:, 0], cameras.position[:, 2])
    assert torch.allclose(azimuths(cameras.world_to_clip), expected, atol=1e-5)
