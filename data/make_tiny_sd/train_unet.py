"""Training of the denoiser and its text encoder on all three image domains.

The network predicts the noise (epsilon) at a uniformly random t. Each batch has a third of coarse images
(with random rotations of their normals), a third of latents of normal images, and a third of latents of
shaded images. The exported weights are moving averages of the trained ones.
"""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from data.make_tiny_sd.captions import VIEW_SHARE, CaptionTable
from data.make_tiny_sd.compile import predict
from data.make_tiny_sd.lr_schedule import StageSchedule, cosine_learning_rate
from data.make_tiny_sd.networks import build_scheduler, embed
from data.make_tiny_sd.train_vae import Latents, random_rotations, rotate_normals
from sd.multi_view import camera_matrices
from training.distributed import SINGLE_PROCESS, Distributed

logger = logging.getLogger(__name__)

LEARNING_RATE = 8e-4
AVERAGE_DECAY = 0.999
DOMAINS = ("coarse", "normal", "shaded")
REPORT_EVERY = 100
# Number of steps after which the ranks synchronise their progress, so that all stop at the same step.
SYNC_EVERY = 10


@dataclass
class Denoiser:
    """The content of a checkpoint: the networks, their moving averages, the optimiser and the progress."""

    unet: nn.Module
    text_encoder: nn.Module
    average_unet: nn.Module
    average_text_encoder: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    progress: float = 0.0
    # Training time in seconds that was planned at the start. A resumed run trains for the remaining time.
    planned_seconds: float = 0.0
    rate_factor: float = 1.0
    # Time in seconds of all calls together, including rendering, up to the checkpoint.
    spent_seconds: float = 0.0
    history: list[dict] = field(default_factory=list)

    @property
    def trained(self) -> tuple[nn.Module, nn.Module]:
        return self.unet, self.text_encoder

    @property
    def averages(self) -> tuple[nn.Module, nn.Module]:
        return self.average_unet, self.average_text_encoder

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for network in self.trained for parameter in network.parameters()]

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically."""
        networks = [network.state_dict() for network in (*self.trained, *self.averages)]
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        temporary = path.with_suffix(".new")
        torch.save(
            {"networks": networks, "optimizer": self.optimizer.state_dict(), "numbers": numbers}, temporary
        )
        temporary.replace(path)

    def load(self, path: Path, device: torch.device) -> None:
        state = torch.load(path, map_location=device, weights_only=True)
        for network, weights in zip((*self.trained, *self.averages), state["networks"], strict=True):
            network.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        for name in _NUMBERS:
            setattr(self, name, state["numbers"][name])


_NUMBERS = ("step", "progress", "planned_seconds", "rate_factor", "spent_seconds", "history")


def make_denoiser(unet: nn.Module, text_encoder: nn.Module, device: torch.device) -> Denoiser:
    """Return a Denoiser on `device` for training. The averages start as copies of the networks."""
    unet = unet.to(device, memory_format=torch.channels_last).train()
    text_encoder = text_encoder.to(device).train()
    averages = [copy.deepcopy(network).requires_grad_(False).eval() for network in (unet, text_encoder)]
    optimizer = torch.optim.AdamW(
        [*unet.parameters(), *text_encoder.parameters()],
        lr=LEARNING_RATE,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        fused=device.type == "cuda",
    )
    return Denoiser(unet, text_encoder, *averages, optimizer)


@dataclass(frozen=True)
class TrainingData:
    """Latents of all views, the scaling factor of the VAE's latents, and the tokenized captions.

    views: number of views that the denoiser processes together. If it exceeds 1, these views have a common
    caption, which cannot name one view, so view_share should be 0. front_share: share of the images that are
    drawn from the front views only. view_share: share of the captions that contain the view.
    """

    latents: Latents
    scaling_factor: float
    captions: CaptionTable
    tokens: Int[Tensor, "C 77"]
    views: int = 1
    front_share: float = 0.0
    view_share: float = VIEW_SHARE


def draw_rows(
    latents: Latents, batch: int, generator: torch.Generator, views: int = 1, front_share: float = 0.0
) -> Int[Tensor, " B"]:
    """Draw random rows of `latents`: groups of `views` consecutive rows (see `TrainingData`)."""
    device, count = latents.category.device, batch // views
    rows = torch.randint(len(latents.category) // views, (count,), generator=generator, device=device)
    if front_share > 0:
        front = (latents.view == 0).nonzero()[:, 0]
        chosen = front[torch.randint(len(front), (count,), generator=generator, device=device)]
        biased = torch.rand(count, generator=generator, device=device) < front_share
        rows = torch.where(biased, chosen, rows)
    return (rows[:, None] * views + torch.arange(views, device=device)).flatten()


def draw_latents(
    latents: Latents,
    batch: int,
    scaling_factor: float,
    generator: torch.Generator,
    views: int = 1,
    front_share: float = 0.0,
) -> tuple[Float[Tensor, "B 4 s s"], Int[Tensor, " B"]]:
    """Draw a batch with a third of each domain, in the order of DOMAINS.

    Returns x_0 and the row in `latents` of each image. The coarse normals of a group of views have the same
    rotation.
    """
    device = latents.category.device
    rows = draw_rows(latents, batch, generator, views, front_share)
    coarse_rows, normal_rows, shaded_rows = rows.split(domain_sizes(batch, views))
    coarse = latents.coarse[coarse_rows].float()
    rotations = random_rotations(len(coarse) // views, generator).repeat_interleave(views, 0)
    turned = rotate_normals(coarse[:, :3], rotations)
    parts = [torch.cat([turned, coarse[:, 3:]], dim=1)]
    for mean, deviation, chosen in (
        (latents.normal_mean, latents.normal_deviation, normal_rows),
        (latents.shaded_mean, latents.shaded_deviation, shaded_rows),
    ):
        centre = mean[chosen].float()
        noise = torch.randn(centre.shape, generator=generator, device=device)
        parts.append((centre + deviation[chosen].float() * noise) * scaling_factor)
    return torch.cat(parts), rows


def domain_sizes(batch: int, views: int = 1) -> list[int]:
    """Return the number of images of each domain in a batch that consists of groups of `views` images."""
    groups = batch // views
    return [views * (groups - 2 * (groups // 3)), views * (groups // 3), views * (groups // 3)]


def step_errors(
    denoiser: Denoiser,
    unet: nn.Module,
    data: TrainingData,
    batch: int,
    abar: Float[Tensor, " T"],
    *,
    generator: torch.Generator,
    autocast: Callable,
) -> Float[Tensor, " B"]:
    """Draw a batch and return the mean squared error of the predicted noise for each image."""
    latents, views = data.latents, data.views
    x0, rows = draw_latents(latents, batch, data.scaling_factor, generator, views, data.front_share)
    # All views of a group have the same caption and the same t.
    first = rows[::views]
    labels = (latents.category[first], latents.view[first], latents.material[first])
    caption_rows = data.captions.draw(*labels, generator, data.view_share).repeat_interleave(views)
    timesteps = torch.randint(len(abar), (batch // views,), generator=generator, device=abar.device)
    timesteps = timesteps.repeat_interleave(views)
    camera = camera_matrices(latents.camera[rows]) if views > 1 else None
    noise = torch.randn(x0.shape, generator=generator, device=abar.device)
    signal = abar[timesteps].view(-1, 1, 1, 1)
    noisy = (signal.sqrt() * x0 + (1 - signal).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    with autocast():
        text = embed(denoiser.text_encoder, data.tokens[caption_rows]).float()
        prediction = predict(unet, noisy, timesteps, text, camera)
    return (prediction.float() - noise).square().mean(dim=(1, 2, 3))


def train_denoiser(
    denoiser: Denoiser,
    data: TrainingData,
    schedule: StageSchedule,
    *,
    batch: int,
    generator: torch.Generator,
    autocast: Callable,
    select_unet: Callable[[nn.Module], nn.Module],
    checkpoint: Callable[[Denoiser], None],
    stop_at: float = float("inf"),
    checkpoint_seconds: float = 60.0,
    distributed: Distributed = SINGLE_PROCESS,
) -> None:
    """Train until `schedule` is complete or time.monotonic() exceeds `stop_at`.

    select_unet: called every REPORT_EVERY steps; it returns the module to run (the compiled one as soon as it
    is ready). checkpoint: called with the denoiser every `checkpoint_seconds` and at the end.

    Raises:
        FloatingPointError: if the loss diverges. The existing checkpoints stay valid.
    """
    abar = build_scheduler().alphas_cumprod.to(data.tokens.device)
    unet, started, first = denoiser.unet, time.monotonic(), denoiser.step
    saved = started
    losses, sizes = torch.zeros(len(DOMAINS), device=abar.device), domain_sizes(batch, data.views)
    stopping = False
    while denoiser.progress < 1 and not stopping:
        done = denoiser.step - first
        if done % REPORT_EVERY == 0:
            unet = select_unet(denoiser.unet)
        rate = cosine_learning_rate(denoiser.progress, LEARNING_RATE) * denoiser.rate_factor
        for group in denoiser.optimizer.param_groups:
            group["lr"] = rate
        errors = step_errors(denoiser, unet, data, batch, abar, generator=generator, autocast=autocast)
        errors.mean().backward()
        distributed.average_gradients(denoiser.parameters())
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        denoiser.optimizer.step()
        denoiser.optimizer.zero_grad(set_to_none=True)
        _update_averages(denoiser)
        losses += torch.stack([part.mean() for part in errors.detach().split(sizes)])
        denoiser.step += 1
        if distributed.world_size == 1 or (done + 1) % SYNC_EVERY == 0:
            denoiser.progress = distributed.broadcast_value(schedule.progress(done + 1))
            stopping = distributed.broadcast_value(time.monotonic() > stop_at) > 0
        if (done + 1) % REPORT_EVERY == 0:
            speed = (done + 1) / (time.monotonic() - started)
            _report(denoiser, distributed.all_reduce_mean(losses / REPORT_EVERY).tolist(), rate, speed)
            losses.zero_()
        if time.monotonic() - saved > checkpoint_seconds:
            checkpoint(denoiser)
            saved = time.monotonic()
    distributed.assert_replicas_equal(list(denoiser.parameters()))
    logger.info("rank %d: the replicas agree", distributed.rank)
    checkpoint(denoiser)


def _report(denoiser: Denoiser, losses: list[float], rate: float, speed: float) -> None:
    means = dict(zip(DOMAINS, losses, strict=True))
    denoiser.history.append({"step": denoiser.step, "progress": denoiser.progress, "rate": rate, **means})
    shown = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    if not all(value < 5 for value in losses):
        raise FloatingPointError(f"the loss is {shown} at step {denoiser.step}")
    if denoiser.step % (5 * REPORT_EVERY) == 0:
        percent = 100 * denoiser.progress
        logger.info("denoiser step %d (%.0f %%): %s; %.1f it/s", denoiser.step, percent, shown, speed)


@torch.no_grad()
def _update_averages(denoiser: Denoiser) -> None:
    """Update the exponential moving averages.

    The decay factor is smaller in the first steps, so the initial weights soon have little effect on the
    averages.
    """
    decay = min(AVERAGE_DECAY, (1 + denoiser.step) / (10 + denoiser.step))
    for average, network in zip(denoiser.averages, denoiser.trained, strict=True):
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
