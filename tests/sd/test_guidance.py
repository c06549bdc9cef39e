"""Compare the SDS gradient with closed forms."""

import pytest
import torch

from configs.modes import MODES
from sd.guidance import Guidance, GuidanceConfig, loss_with_gradient
from sd.prompts import directional_prompts
from sd.schedule import Phase, damped, one_minus_abar

DEVICE = torch.device("cpu")


class PointPrior:
    """A prior whose distribution is a Dirac delta at one latent per prompt. Its score has a closed form."""

    latent_channels, latent_size, image_size = 4, 4, 8
    views, takes_cameras, control_net = 1, False, None

    def __init__(self):
        self.alphas_cumprod = torch.linspace(0.999, 0.005, 1000)
        self.prompts = []

    def embed(self, prompts):
        self.prompts = prompts
        return torch.arange(len(prompts), dtype=torch.float32)[:, None, None].expand(-1, 1, 1) * 0.25

    def encode(self, images, noise):
        pooled = torch.nn.functional.avg_pool2d(images, 2)
        return torch.cat([pooled, pooled.mean(1, keepdim=True)], 1)

    def mean(self, text):
        return text.mean((1, 2))[:, None, None, None]

    def predict_noise(self, noisy, timesteps, text, conditions=None):
        abar = self.alphas_cumprod[timesteps][:, None, None, None]
        return (noisy - abar.sqrt() * self.mean(text)) / (1 - abar).sqrt()


def fixed_time_phase(fraction, weight, latents_from):
    return Phase("test", (fraction, fraction), weight, latents_from, rotate_normals=False)


def judged(guidance, image, view_index, phase, generator):
    return guidance(image, guidance.sample(view_index, phase, generator), phase)


@pytest.mark.parametrize("guidance_weight", [0.0, 1.0, 7.5])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
@pytest.mark.parametrize("weight", [one_minus_abar, damped])
def test_gradient_of_a_point_prior_is_the_closed_form(guidance_weight, fraction, weight):
    prior = PointPrior()
    config = GuidanceConfig(text="x", guidance_weight=guidance_weight)
    guidance = Guidance(prior, config, MODES["geometry_modeling"].negative_prompt, DEVICE)
    image = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    view_index = torch.tensor([0, 1, 2])
    phase = fixed_time_phase(fraction, weight, "image")
    loss, _ = judged(guidance, image, view_index, phase, torch.Generator().manual_seed(2))
    loss.backward()
    abar = prior.alphas_cumprod[int(1000 * fraction)]
    negative, text = 0.75, 0.25 * view_index.float()
    # The predicted noise e is affine in the mean, so guidance of e is equivalent to guidance of the mean.
    mean = negative + guidance_weight * (text - negative)
    scale = weight(abar) * (abar / (1 - abar)).sqrt()
    expected = scale * (image.detach() - mean[:, None, None, None])
    assert torch.allclose(image.grad, expected, atol=2e-5, rtol=1e-4)


def test_gradient_reaches_the_image_through_the_encoder():
    prior = PointPrior()
    guidance = Guidance(
        prior, GuidanceConfig(guidance_weight=1.0), MODES["appearance_modeling"].negative_prompt, DEVICE
    )
    image = torch.zeros(1, 8, 8, 3, requires_grad=True)
    phase = fixed_time_phase(0.3, one_minus_abar, "vae")
    loss, stats = judged(guidance, image, torch.tensor([1]), phase, torch.Generator().manual_seed(0))
    loss.backward()
    abar = prior.alphas_cumprod[300]
    latent_gradient = (1 - abar) * (abar / (1 - abar)).sqrt() * (0 - 0.25)
    # A pixel has weight 1/4 in a pooled value. The pooled value has weight 1 in its own channel and weight
    # 1/3 in the mean channel.
    expected = latent_gradient * 0.25 * (1 + 1 / 3)
    assert torch.allclose(image.grad, expected.expand_as(image), rtol=1e-4)
    assert stats["gradient_norm"] > 0


@pytest.mark.parametrize("latents_from", ["image", "vae"])
def test_low_memory_gives_the_same_step(latents_from):
    side = 4 if latents_from == "image" else 8
    first = torch.randn(3, side, side, 4, generator=torch.Generator().manual_seed(5))
    phase = Phase("p", (0.02, 0.98), one_minus_abar, latents_from, rotate_normals=False)
    found, batch_sizes = {}, []
    for low_memory in (False, True):
        prior = PointPrior()
        predict = prior.predict_noise
        prior.predict_noise = lambda noisy, t, text, _, predict=predict: (
            batch_sizes.append(len(noisy)) or predict(noisy, t, text)
        )
        config = GuidanceConfig(text="x", guidance_weight=3.0, low_memory=low_memory)
        guidance = Guidance(prior, config, MODES["geometry_modeling"].negative_prompt, DEVICE)
        image = first.clone().requires_grad_()
        loss, stats = judged(
            guidance, image, torch.tensor([2, 0, 1]), phase, torch.Generator().manual_seed(2)
        )
        (2 * loss).backward()
        found[low_memory] = (loss.detach(), image.grad, stats["loss"], stats["gradient_norm"])
    for whole, pieces in zip(found[False], found[True], strict=True):
        assert torch.allclose(whole, pieces, rtol=1e-4, atol=1e-5)
    assert found[True][1].abs().max() > 0
    assert batch_sizes == [6, 2, 2, 2]


def test_loss_has_exactly_the_given_gradient():
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    gradient = torch.randn(2, 4, 3, 3)
    loss_with_gradient(latents, gradient).backward()
    assert torch.allclose(latents.grad, gradient, atol=1e-6)


def test_loss_depends_on_the_generator_state_only():
    guidance = Guidance(PointPrior(), GuidanceConfig(), MODES["geometry_modeling"].negative_prompt, DEVICE)
    image = torch.randn(2, 4, 4, 4)
    phase = Phase("p", (0.02, 0.98), one_minus_abar, "image", rotate_normals=False)

    def loss(seed):
        return judged(guidance, image, torch.tensor([0, 1]), phase, torch.Generator().manual_seed(seed))[0]

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


def test_prompts():
    assert directional_prompts("A car", True) == ["A car, front view", "A car, side view", "A car, back view"]
    assert directional_prompts("A car", False) == ["A car"] * 3


def test_negative_text_reaches_the_prior():
    prior = PointPrior()
    Guidance(
        prior,
        GuidanceConfig(text="a", negative_text="no legs"),
        MODES["geometry_modeling"].negative_prompt,
        DEVICE,
    )
    assert prior.prompts[-1] == "no legs"
    Guidance(prior, GuidanceConfig(text="a"), "the default", DEVICE)
    assert prior.prompts[-1] == "the default"
