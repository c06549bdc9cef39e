"""Test that the noise schedule equals that of diffusers' schedulers, and that other settings are rejected."""

import json
import shutil

import diffusers
import pytest
import torch

from sd.loading.noise_schedule import load_noise_schedule
from sd.stable_diffusion import StableDiffusion

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"]
)
@pytest.mark.parametrize("extra", [{}, {"beta_schedule": "linear"}, {"trained_betas": [0.1, 0.2, 0.3]}])
def test_abar_is_that_of_the_scheduler_class(name, extra):
    settings = {**SD, **extra}
    expected = getattr(diffusers, name)(**settings).alphas_cumprod
    found = load_noise_schedule({"_class_name": name, **settings})
    assert torch.equal(found.alphas_cumprod, expected) and found.prediction_type == "epsilon"
    # The expected values are the cumulative products of 1 − beta.
    if "trained_betas" in extra:
        assert torch.allclose(found.alphas_cumprod, torch.tensor([0.9, 0.72, 0.504]))
        assert found.num_train_timesteps == 3


def test_betas_are_rescaled_to_zero_terminal_snr():
    """abar is 0 at the last t and unchanged at the first t (Lin et al., arXiv 2305.08891, algorithm 1)."""
    settings = {"_class_name": "DDIMScheduler", **SD, "prediction_type": "v_prediction"}
    plain = load_noise_schedule(settings).alphas_cumprod
    rescaled = load_noise_schedule({**settings, "rescale_betas_zero_snr": True}).alphas_cumprod
    root = plain.double().sqrt()
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    assert torch.allclose(rescaled.double(), expected, atol=1e-6)
    assert rescaled[-1] == 0 and torch.isclose(rescaled[0], plain[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "_class_name = 'FlowMatchEulerDiscreteScheduler'",
        ),
        ({"_class_name": "NoSuchScheduler"}, "no such scheduler"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr.*epsilon"),
        (
            {"_class_name": "PNDMScheduler", "rescale_betas_zero_snr": True},
            "PNDMScheduler of diffusers has no",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"prediction_type": "sample"}, "prediction_type = 'sample'"),
        ({"_class_name": "DDIMScheduler", "snr_shift_scale": 3.0}, "snr_shift_scale"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps = 1000000000"),
    ],
)
def test_settings_that_are_not_supported_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        load_noise_schedule({**SD, **settings})


def test_published_settings_are_accepted():
    """The additional keys of the published 1.x and 2.x files are accepted: they affect only samplers."""
    for more in (
        {"_class_name": "PNDMScheduler", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "skip_prk_steps": True},
    ):
        settings = {**SD, "_diffusers_version": "0.8.0", "trained_betas": None, **more}
        assert load_noise_schedule(settings).num_train_timesteps == 1000


def test_model_with_zero_terminal_snr_is_loaded(velocity_folder, tmp_path):
    folder = shutil.copytree(velocity_folder, tmp_path / "model")
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rescale_betas_zero_snr": True}))
    prior = StableDiffusion.from_pretrained(str(folder), CPU)
    assert prior.alphas_cumprod[-1] == 0
    # At abar = 0, v = −x and the noise equals x_t.
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    predicted = prior.predict_noise(noisy, torch.tensor([999]), prior.embed(["a car"]))
    assert torch.allclose(predicted, noisy)
