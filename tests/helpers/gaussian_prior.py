"""A prior with normally distributed latents, whose scores have a closed form."""

import torch
from torch import nn


def gaussian_noise(noisy, abar, mean, variance):
    """Compute E[ε | x_t] for x ~ N(mean, variance)."""
    return (1 - abar).sqrt() * (noisy - abar.sqrt() * mean) / (abar * variance + 1 - abar)


class GaussianLora(nn.Module):
    """A LoRA whose noise prediction e_φ is exact for renders x ~ N(mean, variance). The mean is trained."""

    def __init__(self, mean, variance):
        super().__init__()
        self.mean, self.variance = nn.Parameter(torch.tensor(mean)), variance

    def trained(self):
        return dict(self.named_parameters())


class GaussianPrior:
    """A prior with normally distributed latents [B, 4, 4, 4].

    `embed` assigns a mean of the latents to each prompt: n / 4 to the prompt at index n of the list, and
    EMPTY to an empty prompt.

    calls: the batch size of each call of predict_noise.
    """

    latent_channels, latent_size, image_size = 4, 4, 8
    views, takes_cameras, control_net = 1, False, None
    EMPTY = -0.5

    def __init__(self, variance=0.2):
        self.alphas_cumprod = torch.linspace(0.999, 0.005, 1000)
        self.variance, self.calls = variance, []

    def embed(self, prompts):
        means = [self.EMPTY if prompt == "" else number / 4 for number, prompt in enumerate(prompts)]
        return torch.tensor(means)[:, None, None].expand(-1, 1, 1)

    def encode(self, images, noise):
        pooled = torch.nn.functional.avg_pool2d(images, 2)
        return torch.cat([pooled, pooled.mean(1, keepdim=True)], 1)

    def predict_noise(self, noisy, timesteps, text, conditions=None):
        self.calls.append(len(noisy))
        abar = self.alphas_cumprod[timesteps][:, None, None, None]
        return gaussian_noise(noisy, abar, text.mean((1, 2))[:, None, None, None], self.variance)

    def make_lora(self, rank, seed):
        return GaussianLora(0.0, self.variance)

    def predict_lora_noise(self, lora, noisy, timesteps, text, conditions):
        assert conditions.world_to_clip.shape == (len(noisy), 4, 4)
        abar = self.alphas_cumprod[timesteps][:, None, None, None]
        return gaussian_noise(noisy, abar, lora.mean, lora.variance)
