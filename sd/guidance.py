"""Score distillation: the loss of a batch of images, with the gradient w(t) · score on their latents.

x_t = sqrt(abar) x + sqrt(1 − abar) noise for the latent x of each image; the gradient on x is w(t) · score,
summed over the batch. The scores are in sd/scores.py; the default is SDS (DreamFusion, arXiv 2209.14988,
equation 3). The weights w(t) are in sd/schedule.py.
"""

import dataclasses
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from sd.prompts import directional_prompts
from sd.schedule import AnnealedNumber, Phase, annealed_number, draw_timesteps
from sd.scores import Predictions, Score, perp_neg, score_of, view_weights
from sd.surface_noise import surface_noise
from sd.vsd import LearningRate, LoraRank, azimuths, camera_numbers

LoraEntry = Annotated[str, StringConstraints(min_length=1)]


@dataclass(frozen=True)
class GuidanceConfig:
    """Config keys of the prior, the prompts and the score."""

    text: str = Field("", description="the prompt")
    negative_text: str = Field("", description="negative prompt; empty means the default of the mode")
    add_directional_text: bool = Field(
        False, description='append ", front view", ", side view" or ", back view" to the prompt'
    )
    guidance_weight: float = Field(100.0, ge=0, description="classifier-free guidance weight")
    score: Score = Field(
        "sds",
        description="the gradient's formula: sds, csd (Classifier Score Distillation), nfsd (Noise-Free "
        "Score Distillation) or vsd (Variational Score Distillation, which also trains a LoRA of the prior)",
    )
    perp_neg: bool = Field(
        False,
        description="use the words of the other sides as negatives (Perp-Neg), which needs "
        "add_directional_text: against several faces on one object, for twice the denoiser's work",
    )
    csd_negative_weight: AnnealedNumber = Field(
        1.0,
        description="in csd, the weight of negative_text as a share of guidance_weight; [start, end] changes "
        "linearly over the first phase after the fit and then stays",
    )
    vsd_lora_rank: LoraRank = Field(4, description="in vsd, the rank of the LoRA")
    vsd_learning_rate: LearningRate = Field(1e-4, description="in vsd, of the LoRA's AdamW")
    noise: Literal["independent", "surface"] = Field(
        "independent",
        description="the noise in x_t: independent in every step and view, or fixed to the surface "
        "(Consistent Flow Distillation), which is meant for a time_step_schedule that falls",
    )
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

    @model_validator(mode="after")
    def _perp_neg_has_view_words(self) -> "GuidanceConfig":
        if self.perp_neg and not self.add_directional_text:
            raise ValueError(
                "perp_neg is true and add_directional_text is false; perp_neg needs the view words, set "
                "add_directional_text to true"
            )
        return self


@runtime_checkable
class Prior(Protocol):
    """The interface of a latent diffusion model (implemented in sd/stable_diffusion.py)."""

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


def zero_non_finite(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Replace NaN and infinities by 0; finite values are unchanged."""
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def loss_with_gradient(
    latents: Float[Tensor, "B C h w"], gradient: Float[Tensor, "B C h w"]
) -> Float[Tensor, ""]:
    """A scalar whose gradient on the latents is exactly `gradient`, and 0 for latents that are not finite."""
    target = (latents - gradient).detach()
    return 0.5 * zero_non_finite(latents - target).square().sum()


@dataclasses.dataclass(frozen=True)
class SDSSample:
    """The random draws and the cameras of a batch of views.

    view_index: 0 front, 1 side, 2 back. timesteps: t. noise: the noise in x_t. encoder_noise: the noise of
    the VAE's posterior sample. world_to_clip: the cameras, None if the score does not use them.
    """

    view_index: Int[Tensor, " B"]
    timesteps: Int[Tensor, " B"]
    noise: Float[Tensor, "B C h w"]
    encoder_noise: Float[Tensor, "B C h w"]
    world_to_clip: Float[Tensor, "B 4 4"] | None = None

    def view(self, number: int) -> "SDSSample":
        """The sample of one view."""
        some = slice(number, number + 1)
        return SDSSample(*(None if tensor is None else tensor[some] for tensor in vars(self).values()))


class Guidance(nn.Module):
    """Computes the loss of images. Stores the prompt embeddings. The prior's weights get no gradient.

    lora, lora_optimizer: VSD's trained denoiser and its optimizer, None for all other scores.
    """

    def __init__(
        self,
        prior: Prior,
        config: GuidanceConfig,
        default_negative_text: str,
        device: torch.device,
        seed: int = 0,
    ):
        """default_negative_text: used if the config's negative_text is empty. seed: for VSD's LoRA."""
        super().__init__()
        self.prior = prior
        self.config = config
        self.device = device
        with torch.no_grad():
            prompts = directional_prompts(config.text, config.add_directional_text)
            embedded = prior.embed([*prompts, config.negative_text or default_negative_text])
            empty = prior.embed([""]) if config.score in ("csd", "nfsd") else None
        self.register_buffer("text", embedded[:3], persistent=False)
        self.register_buffer("negative", embedded[3:], persistent=False)
        self.register_buffer("empty", empty, persistent=False)
        self.lora = self.lora_optimizer = None
        if config.score == "vsd":
            self.lora = prior.make_lora(config.vsd_lora_rank, seed)
            self.lora_optimizer = torch.optim.AdamW(
                self.lora.trained().values(),
                lr=config.vsd_learning_rate,
                eps=1e-15,
                fused=device.type == "cuda",
            )

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of the guidance's own parameters: one for VSD, otherwise none."""
        return [] if self.lora_optimizer is None else [self.lora_optimizer]

    def forward(
        self, image: Float[Tensor, "B H W C"], sample: SDSSample, phase: Phase
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss and the statistics for the log.

        Statistics: loss, gradient_norm (on the latents, per view), lora_loss (VSD only), replaced_values (the
        number of NaN and infinities in the latents' gradient, which are replaced by 0). With VSD, the LoRA's
        gradient is also accumulated.

        image: in the coarse phase 4 channels, normal in [−1, 1] and mask in [0, 1]. In a phase with the VAE,
        the first 3 channels are used, in [−1, 1].
        """
        if not self.config.low_memory:
            loss, gradient, stats = self._distillation_loss(image, sample, phase)
            return loss, {"loss": loss.detach(), "gradient_norm": gradient.norm() / len(image), **stats}
        total, squares, gradients, sums = image.new_zeros(()), image.new_zeros(()), [], {}
        for view in range(len(image)):
            piece = image[view : view + 1].detach().requires_grad_()
            loss, gradient, stats = self._distillation_loss(piece, sample.view(view), phase)
            gradients += torch.autograd.grad(loss, piece)
            total, squares = total + loss.detach(), squares + gradient.square().sum()
            sums = {name: sums.get(name, 0) + value for name, value in stats.items()}
        if self.lora is not None:
            sums["lora_loss"] = sums["lora_loss"] / len(image)
        # The total loss, plus a term of value 0 whose gradient is the gradient of each view.
        loss = total + ((image - image.detach()) * torch.cat(gradients)).sum()
        return loss, {"loss": total, "gradient_norm": squares.sqrt() / len(image), **sums}

    def latent_values(self, views: int) -> int:
        """The number of values in the latents of `views` images."""
        return views * self.prior.latent_channels * self.prior.latent_size**2

    def sample(
        self,
        view_index: Int[Tensor, " B"],
        phase: Phase,
        generator: torch.Generator,
        world_to_clip: Float[Tensor, "B 4 4"] | None = None,
    ) -> SDSSample:
        """The random draws for a batch of views, copied to the prior's device asynchronously.

        generator, view_index and world_to_clip are on the CPU. The noise of a step is therefore the same on
        every device and in low_memory mode.
        """
        count, size = len(view_index), self.prior.latent_size
        shape = (count, self.prior.latent_channels, size, size)
        timesteps = draw_timesteps(phase, count, len(self.prior.alphas_cumprod), generator)
        noise, encoder_noise = self._to_device(
            torch.stack([torch.randn(shape, generator=generator) for _ in range(2)])
        )
        cameras = None
        if self.config.perp_neg or self.lora is not None:
            assert world_to_clip is not None, "perp_neg and vsd need the cameras"
            cameras = self._to_device(world_to_clip)
        return SDSSample(
            self._to_device(view_index), self._to_device(timesteps), noise, encoder_noise, cameras
        )

    def with_surface_noise(
        self,
        sample: SDSSample,
        visible: tuple[Float[Tensor, "N 3"], Int[Tensor, " N"]],
        world_to_clip: Float[Tensor, "B 4 4"],
        image_size: tuple[int, int],
        seed: int,
    ) -> SDSSample:
        """The sample with noise fixed to the surface. visible: (position, pixel), see `surface_noise`."""
        noise = surface_noise(sample.noise, *visible, image_size, world_to_clip, seed)
        return dataclasses.replace(sample, noise=noise)

    def _to_device(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor on the device. A copy from pinned memory is asynchronous."""
        pinned = tensor.device.type == "cpu" and self.device.type == "cuda"
        return (tensor.pin_memory() if pinned else tensor).to(self.device, non_blocking=True)

    def _distillation_loss(
        self, image: Float[Tensor, "B H W K"], sample: SDSSample, phase: Phase
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B C h w"], dict[str, Tensor]]:
        """The loss, its gradient on the latents, and the statistics for the log (see `forward`)."""
        latents = self._latents(image.permute(0, 3, 1, 2), phase, sample.encoder_noise)
        abar = self.prior.alphas_cumprod[sample.timesteps]
        with torch.no_grad():
            predicted = self._predict(latents.detach(), sample, abar)
        stats: dict[str, Tensor] = {}
        if self.lora is not None:
            lora_noise, stats["lora_loss"] = self._train_lora(latents.detach(), sample, abar)
            predicted = dataclasses.replace(predicted, lora=lora_noise)
        with torch.no_grad():
            score = score_of(
                self.config.score,
                predicted,
                sample.noise,
                sample.timesteps / len(self.prior.alphas_cumprod),
                self.config.guidance_weight,
                annealed_number(self.config.csd_negative_weight, phase.annealing),
            )
            gradient = phase.weight(abar)[:, None, None, None] * score
            stats["replaced_values"] = gradient.isfinite().logical_not().sum().to(gradient.dtype)
            gradient = zero_non_finite(gradient)
        return loss_with_gradient(latents, gradient), gradient, stats

    def _latents(self, image: Tensor, phase: Phase, encoder_noise: Tensor) -> Tensor:
        if phase.latents_from == "image":
            # With antialiasing every rendered pixel contributes, so thin parts are not missed.
            size = (self.prior.latent_size, self.prior.latent_size)
            return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
        size = (self.prior.image_size, self.prior.image_size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
        return self.prior.encode(image[:, :3], encoder_noise)

    def _predict(
        self, latents: Float[Tensor, "B C h w"], sample: SDSSample, abar: Float[Tensor, " B"]
    ) -> Predictions:
        """The noise predictions that the score needs, for all texts in one batch."""
        texts = [self.negative.expand(len(latents), -1, -1), self.text[sample.view_index]]
        if self.empty is not None:
            texts.append(self.empty.expand(len(latents), -1, -1))
        others = [(sample.view_index + turn) % len(self.text) for turn in (1, 2)]
        if self.config.perp_neg:
            texts += [self.text[other] for other in others]
        noisy = add_noise(latents, sample.noise, abar)
        predicted = self.prior.predict_noise(
            torch.cat([noisy] * len(texts)), torch.cat([sample.timesteps] * len(texts)), torch.cat(texts)
        ).chunk(len(texts))
        negative, conditional = predicted[:2]
        unconditional = predicted[2] if self.empty is not None else None
        if self.config.perp_neg:
            weights = view_weights(azimuths(sample.world_to_clip))
            base = negative if unconditional is None else unconditional
            chosen = [weights.gather(1, other[:, None])[:, 0] for other in others]
            conditional = perp_neg(base, conditional, predicted[-2:], chosen)
        return Predictions(negative, conditional, unconditional)

    def _train_lora(
        self, latents: Float[Tensor, "B C h w"], sample: SDSSample, abar: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, ""]]:
        """e_φ(x_t) and the mean of ‖e_φ − ε‖². The gradient of the loss is accumulated in the LoRA."""
        with torch.enable_grad():
            predicted = self.prior.predict_lora_noise(
                self.lora,
                add_noise(latents, sample.noise, abar),
                sample.timesteps,
                self.text[sample.view_index],
                camera_numbers(sample.world_to_clip),
            )
            squares = (predicted - sample.noise).square()
            # The sum, because the gradients of a mean underflow in half precision. Adam is scale-invariant.
            squares.sum().backward()
        return predicted.detach(), squares.detach().mean()


def add_noise(
    latents: Float[Tensor, "B C h w"], noise: Float[Tensor, "B C h w"], abar: Float[Tensor, " B"]
) -> Float[Tensor, "B C h w"]:
    """x_t = sqrt(abar) x + sqrt(1 − abar) ε."""
    abar = abar[:, None, None, None]
    return abar.sqrt() * latents + (1 - abar).sqrt() * noise
