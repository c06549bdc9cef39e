"""Score distillation: what the prior thinks of a batch of images, as a loss with the right gradient.

Source: DreamFusion (arXiv 2209.14988) equation 3, with the weights of METHOD section 5.
x_t = sqrt(abar) x + sqrt(1 − abar) noise; e = e_uncond + guidance_weight (e_text − e_uncond);
gradient on the latent = w(t) (e − noise), summed over the batch.
"""

import dataclasses
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from pydantic import Field, StringConstraints, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from sd.prompts import directional_prompts
from sd.schedule import Phase, draw_timesteps

LoraEntry = Annotated[str, StringConstraints(min_length=1)]


@dataclass(frozen=True)
class GuidanceConfig:
    """The prior, the prompts and how they are combined."""

    text: str = Field("", description="the prompt")
    negative_text: str = Field("", description="negative prompt; empty means the default of the mode")
    add_directional_text: bool = Field(
        False, description='append ", front view", ", side view" or ", back view" to the prompt'
    )
    guidance_weight: float = Field(100.0, ge=0, description="classifier-free guidance weight")
    low_memory: bool = Field(
        False,
        description="the prior computes one view at a time: the same step in less memory and more time",
    )
    sd_model: str = Field(
        "stable-diffusion-2-1-base",
        min_length=1,
        description="the prior: a folder in diffusers layout, a single .safetensors checkpoint, a hub id, or "
        "stable-diffusion-2-1-base or stable-diffusion-v1-5, which are looked up in several places",
    )
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = Field(
        "auto", description="what the prior predicts; auto reads it from the model's files"
    )
    cpu_bfloat16: bool | None = Field(
        False,
        description="on a CPU the prior computes in bfloat16: less time and a rougher surface; null: only if "
        "the CPU has instructions for it (AVX512-BF16, AMX)",
    )
    lora: tuple[LoraEntry, ...] = Field(
        (),
        description="LoRA files to add to the prior; PATH:SCALE scales one, for example by 0.7",
        json_schema_extra={"allowed": 'a path or a list of paths, each optionally followed by ":SCALE"'},
    )

    @field_validator("lora", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value


@runtime_checkable
class Prior(Protocol):
    """A latent diffusion model as the guidance needs it (see sd/stable_diffusion.py)."""

    alphas_cumprod: Float[Tensor, " T"]
    latent_size: int
    image_size: int

    def embed(self, prompts: list[str]) -> Float[Tensor, "N L D"]: ...

    def encode(
        self, images: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B C h w"]: ...

    def predict_noise(
        self, noisy: Float[Tensor, "N C h w"], timesteps: Int[Tensor, " N"], text: Float[Tensor, "N L D"]
    ) -> Float[Tensor, "N C h w"]: ...

    @property
    def latent_channels(self) -> int: ...


def sds_gradient(
    predicted: Float[Tensor, "B C h w"], noise: Float[Tensor, "B C h w"], weight: Float[Tensor, " B"]
) -> Float[Tensor, "B C h w"]:
    """w(t) (e − noise)."""
    return weight[:, None, None, None] * (predicted - noise)


def zero_non_finite(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """NaN and infinities become 0; finite values are unchanged."""
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def loss_with_gradient(
    latents: Float[Tensor, "B C h w"], gradient: Float[Tensor, "B C h w"]
) -> Float[Tensor, ""]:
    """A scalar whose gradient on the latents is exactly `gradient`, and 0 where a latent is not finite."""
    target = (latents - gradient).detach()
    return 0.5 * zero_non_finite(latents - target).square().sum()


@dataclasses.dataclass(frozen=True)
class SDSSample:
    """What a batch of views is sample: from which side (see `Cameras.view_index`), t, the noise of x_t, and
    that of the VAE's sample."""

    view_index: Int[Tensor, " B"]
    timesteps: Int[Tensor, " B"]
    noise: Float[Tensor, "B C h w"]
    encoder_noise: Float[Tensor, "B C h w"]

    def view(self, number: int) -> "SDSSample":
        """That of one view."""
        return SDSSample(*(tensor[number : number + 1] for tensor in vars(self).values()))


class Guidance(nn.Module):
    """Images in, SDS loss out. Holds the prompt embeddings; the prior's weights get no gradient."""

    def __init__(
        self, prior: Prior, config: GuidanceConfig, default_negative_text: str, device: torch.device
    ):
        """default_negative_text: used where the config's negative_text is empty."""
        super().__init__()
        self.prior = prior
        self.weight = config.guidance_weight
        self.low_memory = config.low_memory
        self.device = device
        with torch.no_grad():
            prompts = directional_prompts(config.text, config.add_directional_text)
            embedded = prior.embed([*prompts, config.negative_text or default_negative_text])
        self.register_buffer("text", embedded[:3], persistent=False)
        self.register_buffer("negative", embedded[3:], persistent=False)

    def forward(
        self, image: Float[Tensor, "B H W C"], sample: SDSSample, phase: Phase
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss and numbers for the log: loss, gradient_norm (on the latents, per view), replaced_values
        (the number of NaN and infinities in the latents' gradient that are replaced by 0).

        image: in the coarse phase (normal in [−1,1], mask in [0,1]), 4 channels; through the VAE the first 3
        channels, in [−1, 1].
        """
        if not self.low_memory:
            loss, gradient, replaced = self._sds_loss(image, sample, phase)
            norm = gradient.norm() / len(image)
            return loss, {"loss": loss.detach(), "gradient_norm": norm, "replaced_values": replaced}
        total, squares, replaced, gradients = *image.new_zeros(3), []
        for view in range(len(image)):
            piece = image[view : view + 1].detach().requires_grad_()
            loss, gradient, count = self._sds_loss(piece, sample.view(view), phase)
            gradients += torch.autograd.grad(loss, piece)
            total, squares = total + loss.detach(), squares + gradient.square().sum()
            replaced = replaced + count
        # The value of the whole, and each view's gradient by way of a term that is zero.
        loss = total + ((image - image.detach()) * torch.cat(gradients)).sum()
        norm = squares.sqrt() / len(image)
        return loss, {"loss": total, "gradient_norm": norm, "replaced_values": replaced}

    def latent_values(self, views: int) -> int:
        """The number of values in the latents of `views` images."""
        return views * self.prior.latent_channels * self.prior.latent_size**2

    def sample(self, view_index: Int[Tensor, " B"], phase: Phase, generator: torch.Generator) -> SDSSample:
        """What a batch of views is sample, on the prior's device; does not make the host wait for it.

        generator and view_index are on the CPU, so that the same step draws the same noise on every device.
        All is drawn at once: it does not depend on how many views are sample about at a time.
        """
        count, size = len(view_index), self.prior.latent_size
        shape = (count, self.prior.latent_channels, size, size)
        timesteps = draw_timesteps(phase, count, len(self.prior.alphas_cumprod), generator)
        noise, encoder_noise = self._sent(
            torch.stack([torch.randn(shape, generator=generator) for _ in range(2)])
        )
        return SDSSample(self._sent(view_index), self._sent(timesteps), noise, encoder_noise)

    def _sent(self, tensor: Tensor) -> Tensor:
        """On the device. From pinned memory the copy goes on by itself, and the host need not wait for it."""
        waiting = tensor.device.type == "cpu" and self.device.type == "cuda"
        return (tensor.pin_memory() if waiting else tensor).to(self.device, non_blocking=True)

    def _sds_loss(
        self, image: Float[Tensor, "B H W K"], sample: SDSSample, phase: Phase
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B C h w"], Float[Tensor, ""]]:
        """The loss of these views, its gradient on their latents, and the number of values of the gradient
        that were NaN or infinite and are replaced by 0."""
        latents = self._latents(image.permute(0, 3, 1, 2), phase, sample.encoder_noise)
        abar = self.prior.alphas_cumprod[sample.timesteps]
        with torch.no_grad():
            predicted = self._predict(latents.detach(), sample, abar)
            gradient = sds_gradient(predicted, sample.noise, phase.weight(abar))
            replaced = gradient.isfinite().logical_not().sum().to(gradient.dtype)
            gradient = zero_non_finite(gradient)
        return loss_with_gradient(latents, gradient), gradient, replaced

    def _latents(self, image: Tensor, phase: Phase, encoder_noise: Tensor) -> Tensor:
        if phase.latents_from == "image":
            # Area-weighted, so that every rendered pixel is seen and thin parts do not alias away.
            size = (self.prior.latent_size, self.prior.latent_size)
            return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
        size = (self.prior.image_size, self.prior.image_size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
        return self.prior.encode(image[:, :3], encoder_noise)

    def _predict(
        self, latents: Float[Tensor, "B C h w"], sample: SDSSample, abar: Float[Tensor, " B"]
    ) -> Float[Tensor, "B C h w"]:
        """Noise predicted under classifier-free guidance, both halves in one batch of 2B."""
        abar = abar[:, None, None, None]
        noisy = abar.sqrt() * latents + (1 - abar).sqrt() * sample.noise
        text = torch.cat([self.negative.expand(len(latents), -1, -1), self.text[sample.view_index]])
        timesteps = torch.cat([sample.timesteps, sample.timesteps])
        both = self.prior.predict_noise(torch.cat([noisy, noisy]), timesteps, text)
        unconditional, conditional = both.chunk(2)
        return unconditional + self.weight * (conditional - unconditional)
