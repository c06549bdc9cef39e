"""Test the scores in `Guidance`: the predicted texts, Perp-Neg's views, VSD's LoRA and the default score."""

import pytest
import torch
from gaussian_prior import GaussianPrior
from pydantic import ValidationError
from toy_model import write_model

from render.camera import orbit
from sd.conditions import ViewConditions
from sd.guidance import Guidance, GuidanceConfig
from sd.schedule import Phase, one_minus_abar
from sd.scores import classifier_free, perp_neg, view_weights
from sd.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")
PHASE = Phase("p", (0.1, 0.9), one_minus_abar, "image", rotate_normals=False)
CAMERAS = orbit(3, (8, 8)).world_to_clip
VIEWS = torch.tensor([0, 1, 2])


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("model") / "toy")
    return StableDiffusion.from_pretrained(str(folder), CPU, keep_trainable=True)


def image_for(prior):
    size = prior.latent_size
    return torch.randn(3, size, size, 4, generator=torch.Generator().manual_seed(1))


def gradient(prior, image=None, **keys):
    """Run one step. Return (gradient with respect to the image, stats, guidance, sample)."""
    guidance = Guidance(prior, GuidanceConfig(text="x", guidance_weight=3.0, **keys), "negative", CPU)
    image = (image_for(prior) if image is None else image).clone().requires_grad_()
    sample = guidance.sample(VIEWS, PHASE, torch.Generator().manual_seed(2), CAMERAS)
    loss, stats = guidance(image, sample, PHASE)
    loss.backward()
    return image.grad, stats, guidance, sample


@pytest.mark.parametrize(
    ("keys", "predictions"),
    [
        ({}, 2),
        ({"score": "vsd"}, 2),
        ({"score": "csd"}, 3),
        ({"score": "nfsd"}, 3),
        ({"perp_neg": True, "add_directional_text": True}, 4),
        ({"score": "csd", "perp_neg": True, "add_directional_text": True}, 5),
    ],
)
def test_each_score_predicts_only_the_texts_that_it_uses_in_one_batch(keys, predictions):
    prior = GaussianPrior()
    gradient(prior, **keys)
    assert prior.calls == [3 * predictions]


def test_perp_neg_weights_the_words_of_other_sides_by_azimuth():
    prior = GaussianPrior()
    found, _, guidance, sample = gradient(prior, perp_neg=True, add_directional_text=True)
    abar = prior.alphas_cumprod[sample.timesteps][:, None, None, None]
    latents = image_for(prior).permute(0, 3, 1, 2)
    noisy = abar.sqrt() * latents + (1 - abar).sqrt() * sample.noise

    def predicted(text):
        return prior.predict_noise(noisy, sample.timesteps, text.expand(3, -1, -1))

    e_n, sides = predicted(guidance.negative), [predicted(text[None]) for text in guidance.text]
    # orbit(3) has azimuths 0, 120 and 240 degrees, so view i uses view suffix i.
    azimuth = torch.tensor([0.0, 2.0, 4.0]) * torch.pi / 3
    weights = view_weights(azimuth)
    expected = torch.empty_like(found.permute(0, 3, 1, 2))
    for view in range(3):
        other = [side for side in range(3) if side != view]
        e_c = perp_neg(e_n, sides[view], [sides[i] for i in other], [weights[:, i] for i in other])
        expected[view] = ((1 - abar) * (classifier_free(e_n, e_c, 3.0) - sample.noise))[view]
    assert torch.allclose(found.permute(0, 3, 1, 2), expected, atol=1e-5)


def test_perp_neg_without_view_words_raises():
    with pytest.raises(ValidationError, match="perp_neg is true and add_directional_text is false"):
        GuidanceConfig(perp_neg=True)


def test_csd_anneals_the_weight_of_the_negative_text():
    prior, results = GaussianPrior(), {}
    for annealing in (0.0, 0.5, 1.0):
        config = GuidanceConfig(text="x", score="csd", guidance_weight=2.0, csd_negative_weight=(1.0, 0.0))
        guidance = Guidance(prior, config, "negative", CPU)
        phase = Phase("p", (0.5, 0.5), one_minus_abar, "image", rotate_normals=False, annealing=annealing)
        image = torch.zeros(1, 4, 4, 4, requires_grad=True)
        sample = guidance.sample(VIEWS[:1], phase, torch.Generator().manual_seed(0))
        guidance(image, sample, phase)[0].backward()
        results[annealing] = image.grad[0, 0, 0, 0].item()
    # The means are 0 (prompt), −0.5 (empty text) and 0.75 (negative text). The gradient is proportional to
    # (ω2 − 1) 0.5 + 0.75 ω2.
    assert results[1.0] / results[0.0] == pytest.approx(-0.5 / 0.75, rel=1e-4)
    assert results[0.5] == pytest.approx((results[0.0] + results[1.0]) / 2, rel=1e-4)


def test_vsd_with_an_untrained_lora_is_the_guidance_direction(toy):
    found, stats, guidance, sample = gradient(toy, score="vsd")
    abar = toy.alphas_cumprod[sample.timesteps][:, None, None, None]
    latents = image_for(toy).permute(0, 3, 1, 2)
    noisy = abar.sqrt() * latents + (1 - abar).sqrt() * sample.noise
    e_n = toy.predict_noise(noisy, sample.timesteps, guidance.negative.expand(3, -1, -1))
    e_c = toy.predict_noise(noisy, sample.timesteps, guidance.text[VIEWS])
    expected = ((1 - abar) * 2 * (e_c - e_n)).permute(0, 2, 3, 1)
    assert expected.abs().max() > 1e-3
    assert torch.allclose(found, expected, atol=2e-5)
    assert stats["lora_loss"] == pytest.approx((e_c - sample.noise).square().mean().item(), rel=1e-4)


def test_vsd_trains_only_lora_and_camera_embedding(toy):
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    _, _, guidance, _ = gradient(toy, score="vsd")
    trained = guidance.lora.trained()
    assert all(parameter.grad is not None for parameter in trained.values())
    assert {name.split(".")[1] for name in trained if "lora_" not in name} == {"class_embedding"}
    # In the first step, only the LoRA's second factor and the embedding's last layer have a non-zero
    # gradient.
    for name, parameter in trained.items():
        if "lora_B" in name or "class_embedding.last" in name:
            assert parameter.grad.abs().max() > 0, name
    guidance.lora_optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in toy.state_dict().items())


def test_lora_loss_decreases_and_prediction_depends_on_the_camera(toy):
    config = GuidanceConfig(text="x", score="vsd", vsd_learning_rate=1e-2)
    guidance = Guidance(toy, config, "negative", CPU)
    image, losses = image_for(toy), []
    for _ in range(12):
        guidance.lora_optimizer.zero_grad()
        sample = guidance.sample(VIEWS, PHASE, torch.Generator().manual_seed(0), CAMERAS)
        losses.append(guidance(image, sample, PHASE)[1]["lora_loss"].item())
        guidance.lora_optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    inputs = (image[:1].permute(0, 3, 1, 2), torch.tensor([300]), guidance.text[:1])
    cameras = [ViewConditions(CAMERAS[view : view + 1]) for view in (0, 1)]
    seen = [toy.predict_lora_noise(guidance.lora, *inputs, camera) for camera in cameras]
    assert not torch.allclose(*seen, atol=1e-4)


@pytest.mark.parametrize("keys", [{"score": "vsd"}, {"score": "csd"}, {"score": "nfsd"}])
def test_low_memory_gives_the_same_step_with_every_score(toy, keys):
    whole, pieces = (gradient(toy, low_memory=low, **keys) for low in (False, True))
    assert torch.allclose(whole[0], pieces[0], atol=1e-5)
    for name, value in whole[1].items():
        assert torch.allclose(value, pieces[1][name], rtol=1e-3), name
    if keys == {"score": "vsd"}:
        for one, other in zip(
            whole[2].lora.trained().values(), pieces[2].lora.trained().values(), strict=True
        ):
            assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_lora_depends_on_its_seed_and_not_on_the_global_generator(toy):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (toy.make_lora(2, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    pairs = [(p, second.trained()[name], other.trained()[name]) for name, p in first.trained().items()]
    assert all(torch.equal(one, same) for one, same, _ in pairs)
    assert not all(torch.equal(one, different) for one, _, different in pairs)
