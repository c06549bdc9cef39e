"""Test guidance by two priors: the loss is the weighted sum of the two losses on the same images."""

import pytest
import torch
from gaussian_prior import GaussianPrior

from render.camera import orbit
from sd.guidance import Guidance, GuidanceConfig
from sd.mixed_guidance import MixedGuidance
from sd.schedule import Phase, one_minus_abar

CPU = torch.device("cpu")
CAMERAS = orbit(4, (8, 8))


class SmallerPrior(GaussianPrior):
    """A prior for four views, with smaller latents and other means."""

    latent_size, image_size, views, takes_cameras = 2, 4, 4, True
    EMPTY = 0.5

    def predict_noise(self, noisy, timesteps, text, conditions=None):
        assert conditions.world_to_clip.shape == (len(noisy), 4, 4)
        return super().predict_noise(noisy, timesteps, text + 1.0)


def guidance_of(prior, **keys):
    return Guidance(prior, GuidanceConfig(text="x", guidance_weight=2.0, **keys), "negative", CPU)


def gradient(guidance, sample, phase):
    image = torch.randn(4, 8, 8, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss, stats = guidance(image, sample, phase)
    loss.backward()
    return loss.detach(), image.grad, stats


@pytest.mark.parametrize("latents_from", ["image", "vae"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_the_gradient_is_the_weighted_sum(latents_from, low_memory):
    parts = [guidance_of(prior, low_memory=low_memory) for prior in (GaussianPrior(), SmallerPrior())]
    mixed = MixedGuidance(parts, (2.0, (1.0, 0.0)))
    phase = Phase("p", (0.1, 0.9), one_minus_abar, latents_from, rotate_normals=False, annealing=0.75)
    sample = mixed.sample(CAMERAS.view_index, phase, torch.Generator().manual_seed(0), CAMERAS.world_to_clip)
    assert [one.noise.shape[-1] for one in sample] == [4, 2]
    loss, found, stats = gradient(mixed, sample, phase)
    alone = [gradient(part, one, phase) for part, one in zip(parts, sample, strict=True)]
    assert min(other[1].abs().max() for other in alone) > 1e-3
    assert torch.allclose(found, 2 * alone[0][1] + 0.25 * alone[1][1], atol=1e-5)
    assert torch.allclose(loss, 2 * alone[0][0] + 0.25 * alone[1][0], rtol=1e-5)
    assert stats["loss"] == loss and stats["replaced_values"] == 0
    assert stats["gradient_norm"] == alone[0][2]["gradient_norm"]
    assert stats["gradient_norm_2"] == alone[1][2]["gradient_norm"]


def test_views_and_values_of_both_priors_count():
    mixed = MixedGuidance([guidance_of(GaussianPrior()), guidance_of(SmallerPrior())], (1.0, 1.0))
    assert mixed.views == 4 and mixed.optimizers == [] and mixed.control is None and mixed.lora is None
    assert mixed.latent_values(4) == 4 * 4 * 16 + 4 * 4 * 4


def test_the_first_prior_draws_the_same_as_alone():
    first = guidance_of(GaussianPrior())
    mixed = MixedGuidance([first, guidance_of(SmallerPrior())], (1.0, 1.0))
    phase = Phase("p", (0.1, 0.9), one_minus_abar, "image", rotate_normals=False)
    inputs = (CAMERAS.view_index, phase)
    both = mixed.sample(*inputs, torch.Generator().manual_seed(3), CAMERAS.world_to_clip)
    alone = first.sample(*inputs, torch.Generator().manual_seed(3), CAMERAS.world_to_clip)
    assert torch.equal(both[0].noise, alone.noise) and torch.equal(both[0].timesteps, alone.timesteps)


def test_surface_noise_reaches_both_priors():
    mixed = MixedGuidance([guidance_of(GaussianPrior()), guidance_of(SmallerPrior())], (1.0, 1.0))
    phase = Phase("p", (0.1, 0.9), one_minus_abar, "image", rotate_normals=False)
    sample = mixed.sample(CAMERAS.view_index, phase, torch.Generator().manual_seed(0), CAMERAS.world_to_clip)
    visible = torch.zeros(1, 3), torch.tensor([3 * 8 + 4])
    changed = mixed.with_surface_noise(sample, visible, CAMERAS.world_to_clip, (8, 8), 0)
    for one, other in zip(sample, changed, strict=True):
        assert one.noise.shape == other.noise.shape and not torch.equal(one.noise, other.noise)


def test_two_priors_of_different_group_sizes_are_refused():
    other = SmallerPrior()
    other.views = 2
    with pytest.raises(ValueError, match="groups of 2 and 4 views"):
        MixedGuidance([guidance_of(other), guidance_of(SmallerPrior())], (1.0, 1.0))
