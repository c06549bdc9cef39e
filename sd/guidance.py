"""Score distillation. The gradient of an image's loss on the latent is w(t) · score.

The noisy latent is x_t = sqrt(abar) x + sqrt(1 − abar) noise, where x is the latent of an image. The losses
of a batch are summed. The scores are in sd/scores.py. The default is SDS (DreamFusion, arXiv 2209.14988,
equation 3). The weights w(t) are in sd/schedule.py.
"""

import dataclasses
import logging
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sd.conditions import NO_CONDITIONS, ViewConditions
from sd.guidance_config import GuidanceConfig
from sd.prompts import directional_prompts
from sd.resize import resized
from sd.schedule import Phase, annealed_number, draw_timesteps
from sd.scores import Predictions, perp_neg, score_of, view_weights, x0_gradient
from sd.surface_noise import surface_noise
from sd.vsd import azimuths

logger = logging.getLogger(__name__)


@runtime_checkable
class Prior(Protocol):
    """The interface of a latent diffusion model. The implementation is in sd/stable_diffusion.py.

    views: the number of consecutive views of one object that are denoised together. takes_cameras: whether
    the conditions of `predict_noise` must contain the cameras. control_net: not None if the conditions must
    contain a control image and its weight.
    """

    alphas_cumprod: Float[Tensor, " T"]
    latent_size: int
    image_size: int
    views: int
    takes_cameras: bool
    control_net: nn.Module | None

    def embed(self, prompts: list[str]) -> Float[Tensor, "N L D"]: ...

    def encode(
        self, images: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B C h w"]: ...

    def predict_noise(
        self,
        noisy: Float[Tensor, "N C h w"],
        timesteps: Int[Tensor, " N"],
        text: Float[Tensor, "N L D"],
        conditions: ViewConditions = NO_CONDITIONS,
    ) -> Float[Tensor, "N C h w"]: ...

    @property
    def latent_channels(self) -> int: ...


def zero_non_finite(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Replace NaN and infinities by 0. Finite values are unchanged."""
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def loss_with_gradient(
    latents: Float[Tensor, "B C h w"], gradient: Float[Tensor, "B C h w"]
) -> Float[Tensor, ""]:
    """Return a scalar whose gradient on the latents is exactly `gradient`. On latents that are not finite,
    the gradient is 0.
    """
    target = (latents - gradient).detach()
    return 0.5 * zero_non_finite(latents - target).square().sum()


@dataclasses.dataclass(frozen=True)
class SDSSample:
    """The random draws and the cameras of a batch of views.

    view_index: 0 for front, 1 for side, 2 for back. timesteps: t. noise: the noise in x_t. encoder_noise: the
    noise of the VAE's posterior sample. world_to_clip: the camera matrices, or None if they are not used.
    control: the control images in [0, 1], or None without a ControlNet.
    """

    view_index: Int[Tensor, " B"]
    timesteps: Int[Tensor, " B"]
    noise: Float[Tensor, "B C h w"]
    encoder_noise: Float[Tensor, "B C h w"]
    world_to_clip: Float[Tensor, "B 4 4"] | None = None
    control: Float[Tensor, "B 3 S S"] | None = None

    def select(self, some: slice) -> "SDSSample":
        """Return the sample of the selected views."""
        return SDSSample(*(None if tensor is None else tensor[some] for tensor in vars(self).values()))


class Guidance(nn.Module):
    """The score distillation loss of a batch of images. The module stores the prompt embeddings. The prior's
    weights get no gradient.

    lora, lora_optimizer: the denoiser that VSD trains and the optimizer of this denoiser, or None for all
    other scores.
    """

    def __init__(
        self,
        prior: Prior,
        config: GuidanceConfig,
        default_negative_text: str,
        device: torch.device,
        seed: int = 0,
    ):
        """default_negative_text: used if the config's negative_text is empty. seed: the seed of VSD's initial
        LoRA.
        """
        super().__init__()
        if prior.views > 1 and config.add_directional_text:
            # View words such as "front view" are not added to the prompts of a multi-view prior, because such
            # a prior was trained with cameras and with prompts without view words.
            logger.info(
                "the prior takes %d views with their cameras, so add_directional_text has no effect on it",
                prior.views,
            )
            config = dataclasses.replace(config, add_directional_text=False, perp_neg=False)
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
    def views(self) -> int:
        """Return the number of consecutive views in a batch that must show one object from equally spaced
        azimuths.
        """
        return self.prior.views

    @property
    def control(self) -> str | None:
        """Return the type of the prior's control image (a value of the config key `control`), or None without
        a ControlNet.
        """
        return None if self.prior.control_net is None else self.config.control

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the optimizers of the trainable parameters. The list has one item for VSD and is empty
        otherwise.
        """
        return [] if self.lora_optimizer is None else [self.lora_optimizer]

    def forward(
        self, image: Float[Tensor, "B H W C"], sample: SDSSample, phase: Phase
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss and the logged statistics.

        The statistics are loss, gradient_norm (the norm of the gradient on the latents divided by the number
        of views), lora_loss (VSD only) and replaced_values (the number of NaN and infinities in the gradient
        on the latents; they are replaced by 0). With VSD, the LoRA's gradient is also accumulated.

        image: In the coarse phase, the image has 4 channels: normal in [−1, 1] and mask in [0, 1]. In a phase
        with the VAE, only the first 3 channels of the image are used, and their range is [−1, 1].
        """
        if not self.config.low_memory:
            loss, gradient, stats = self._distillation_loss(image, sample, phase)
            return loss, {"loss": loss.detach(), "gradient_norm": gradient.norm() / len(image), **stats}
        total, squares, gradients, sums = image.new_zeros(()), image.new_zeros(()), [], {}
        pieces = [slice(first, first + self.views) for first in range(0, len(image), self.views)]
        for some in pieces:
            piece = image[some].detach().requires_grad_()
            loss, gradient, stats = self._distillation_loss(piece, sample.select(some), phase)
            gradients += torch.autograd.grad(loss, piece)
            total, squares = total + loss.detach(), squares + gradient.square().sum()
            sums = {name: sums.get(name, 0) + value for name, value in stats.items()}
        if self.lora is not None:
            sums["lora_loss"] = sums["lora_loss"] / len(pieces)
        # The added term is 0 and does not change the loss. Its gradient on the image is the stored gradient
        # of each view.
        loss = total + ((image - image.detach()) * torch.cat(gradients)).sum()
        return loss, {"loss": total, "gradient_norm": squares.sqrt() / len(image), **sums}

    def latent_values(self, views: int) -> int:
        """Return the number of values in the latents of `views` images."""
        return views * self.prior.latent_channels * self.prior.latent_size**2

    def sample(
        self,
        view_index: Int[Tensor, " B"],
        phase: Phase,
        generator: torch.Generator,
        world_to_clip: Float[Tensor, "B 4 4"] | None = None,
    ) -> SDSSample:
        """Draw the random values for a batch of views, and copy them to the prior's device asynchronously.

        generator, view_index and world_to_clip must be on the CPU, so that the noise of a step is the same on
        every device and in low_memory mode. The views of one object have the same t.
        """
        count, size = len(view_index), self.prior.latent_size
        assert count % self.views == 0, f"{count} views are not groups of {self.views}"
        shape = (count, self.prior.latent_channels, size, size)
        timesteps = draw_timesteps(phase, count, len(self.prior.alphas_cumprod), generator, self.views)
        noise, encoder_noise = self._to_device(
            torch.stack([torch.randn(shape, generator=generator) for _ in range(2)])
        )
        cameras = None
        if self.config.perp_neg or self.lora is not None or self.prior.takes_cameras:
            assert world_to_clip is not None, "perp_neg, vsd and priors of several views need the cameras"
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
        """Return the sample with noise that is fixed to the surface.

        visible: (position, pixel), see `surface_noise`.
        """
        noise = surface_noise(sample.noise, *visible, image_size, world_to_clip, seed)
        return dataclasses.replace(sample, noise=noise)

    def with_control(self, sample: SDSSample, image: Float[Tensor, "B H W 3"]) -> SDSSample:
        """Return the sample with a control image in [0, 1], resized to the prior's image size."""
        image = resized(image.permute(0, 3, 1, 2), self.prior.image_size)
        return dataclasses.replace(sample, control=image.clamp(0, 1))

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Return a copy of the tensor on the device. A copy from pinned memory is asynchronous."""
        pinned = tensor.device.type == "cpu" and self.device.type == "cuda"
        return (tensor.pin_memory() if pinned else tensor).to(self.device, non_blocking=True)

    def _distillation_loss(
        self, image: Float[Tensor, "B H W K"], sample: SDSSample, phase: Phase
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B C h w"], dict[str, Tensor]]:
        """Return the loss, its gradient on the latents, and the statistics for the log (see `forward`)."""
        latents = self._latents(image.permute(0, 3, 1, 2), phase, sample.encoder_noise)
        abar = self.prior.alphas_cumprod[sample.timesteps]
        noisy = add_noise(latents.detach(), sample.noise, abar)
        conditions = self._conditions(sample, phase)
        with torch.no_grad():
            predicted = self._predict(noisy, sample, conditions)
        stats: dict[str, Tensor] = {}
        if self.lora is not None:
            lora_noise, stats["lora_loss"] = self._train_lora(noisy, sample, conditions)
            predicted = dataclasses.replace(predicted, lora=lora_noise)
        with torch.no_grad():
            gradient = self._gradient(latents.detach(), noisy, abar, predicted, sample, phase)
            stats["replaced_values"] = gradient.isfinite().logical_not().sum().to(gradient.dtype)
            gradient = zero_non_finite(gradient)
        return loss_with_gradient(latents, gradient), gradient, stats

    def _gradient(
        self,
        latents: Float[Tensor, "B C h w"],
        noisy: Float[Tensor, "B C h w"],
        abar: Float[Tensor, " B"],
        predicted: Predictions,
        sample: SDSSample,
        phase: Phase,
    ) -> Float[Tensor, "B C h w"]:
        """Return the gradient on the latents: w(t) · score, or the gradient of the x0 loss. The result may
        contain NaN.
        """
        config = self.config
        if config.score == "x0":
            return x0_gradient(
                latents,
                noisy,
                abar,
                predicted,
                guidance_weight=config.guidance_weight,
                rescale=config.x0_rescale,
                views=self.views,
            )
        score = score_of(
            config.score,
            predicted,
            sample.noise,
            sample.timesteps / len(self.prior.alphas_cumprod),
            config.guidance_weight,
            annealed_number(config.csd_negative_weight, phase.annealing),
        )
        return phase.weight(abar)[:, None, None, None] * score

    def _conditions(self, sample: SDSSample, phase: Phase) -> ViewConditions:
        if sample.control is None:
            return ViewConditions(sample.world_to_clip)
        weight = annealed_number(self.config.control_weight, phase.annealing)
        return ViewConditions(sample.world_to_clip, sample.control, sample.noise.new_full((), weight))

    def _latents(self, image: Tensor, phase: Phase, encoder_noise: Tensor) -> Tensor:
        if phase.latents_from == "image":
            # Antialiasing is used so that every rendered pixel, also of thin parts, contributes to the
            # latent.
            return resized(image, self.prior.latent_size)
        return self.prior.encode(resized(image, self.prior.image_size)[:, :3], encoder_noise)

    def _predict(
        self, noisy: Float[Tensor, "B C h w"], sample: SDSSample, conditions: ViewConditions
    ) -> Predictions:
        """Return the noise predictions that the score needs. The predictions for all texts are computed in
        one batch.
        """
        texts = [self.negative.expand(len(noisy), -1, -1), self.text[sample.view_index]]
        if self.empty is not None:
            texts.append(self.empty.expand(len(noisy), -1, -1))
        others = [(sample.view_index + turn) % len(self.text) for turn in (1, 2)]
        if self.config.perp_neg:
            texts += [self.text[other] for other in others]
        predicted = self.prior.predict_noise(
            torch.cat([noisy] * len(texts)),
            torch.cat([sample.timesteps] * len(texts)),
            torch.cat(texts),
            conditions.repeat(len(texts)),
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
        self, noisy: Float[Tensor, "B C h w"], sample: SDSSample, conditions: ViewConditions
    ) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, ""]]:
        """Return e_φ(x_t) and the mean of (e_φ − ε)². The gradient of the sum of (e_φ − ε)² is accumulated in
        the LoRA.
        """
        with torch.enable_grad():
            predicted = self.prior.predict_lora_noise(
                self.lora, noisy, sample.timesteps, self.text[sample.view_index], conditions
            )
            squares = (predicted - sample.noise).square()
            # The sum is used because the gradients of the mean underflow in half precision. Sum and mean
            # differ by a constant factor, which has no effect on the steps of Adam.
            squares.sum().backward()
        return predicted.detach(), squares.detach().mean()


def add_noise(
    latents: Float[Tensor, "B C h w"], noise: Float[Tensor, "B C h w"], abar: Float[Tensor, " B"]
) -> Float[Tensor, "B C h w"]:
    """Return x_t = sqrt(abar) x + sqrt(1 − abar) ε."""
    abar = abar[:, None, None, None]
    return abar.sqrt() * latents + (1 - abar).sqrt() * noise
