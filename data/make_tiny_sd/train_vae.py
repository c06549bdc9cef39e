"""Training of the small VAE, and the latents of all views.

The VAE encodes two image domains: normals on grey and shaded renders on black. It must also encode the
intermediate images of an optimisation, which have normals and colours that do not occur in the training data.
Therefore half of each batch has rotated normals or changed colours.
"""

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from data.make_tiny_sd.lr_schedule import StageSchedule, cosine_learning_rate
from data.make_tiny_sd.renders import Views
from dataset.cameras import normal_rotations

logger = logging.getLogger(__name__)

LEARNING_RATE = 1.5e-3
# Weight of the KL divergence from N(0, 1) (in nats per latent value) relative to the error per colour value.
KL_WEIGHT = 5e-5
AUGMENTED_SHARE = 0.5


@dataclass(frozen=True)
class Latents:
    """Latents of all views for training the denoiser, without the scaling factor, in half precision.

    coarse: (normal, mask) without rotation, at the size of the latents. mean and deviation: the VAE's
    posterior of normal and shaded images. category, view, material and camera: as in `Views`.
    """

    coarse: Float[Tensor, "N 4 s s"]
    normal_mean: Float[Tensor, "N 4 s s"]
    normal_deviation: Float[Tensor, "N 4 s s"]
    shaded_mean: Float[Tensor, "N 4 s s"]
    shaded_deviation: Float[Tensor, "N 4 s s"]
    category: Int[Tensor, " N"]
    view: Int[Tensor, " N"]
    material: Int[Tensor, " N"]
    camera: Float[Tensor, "N 4 4"]


def random_rotations(count: int, generator: torch.Generator) -> Float[Tensor, "count 3 3"]:
    """Draw random rotations of the normals, as in the coarse phase."""
    return normal_rotations(torch.rand(2, count, generator=generator, device=generator.device))


def rotate_normals(
    normals: Float[Tensor, "B 3 S S"], rotation: Float[Tensor, "B 3 3"]
) -> Float[Tensor, "B 3 S S"]:
    """Rotate all normals of each image by the rotation of this image. A background of 0 stays 0."""
    return torch.einsum("bij,bjhw->bihw", rotation, normals)


def recolour(images: Float[Tensor, "B 3 S S"], generator: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """Permute the channels and scale each channel by a random factor from U(0.5, 1.3).

    The permutation is the same for all images. Black stays black.
    """
    order = torch.rand(3, generator=generator, device=images.device).argsort()
    gain = 0.5 + 0.8 * torch.rand(len(images), 3, 1, 1, generator=generator, device=images.device)
    return (((images[:, order] + 1) * gain).clamp(0, 2)) - 1


def draw_images(views: Views, batch: int, generator: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """Draw half normal images and half shaded images. AUGMENTED_SHARE of them are augmented."""
    device = views.category.device
    rows = torch.randint(len(views), (batch,), generator=generator, device=device)
    normals = views.normal_images(rows[: batch // 2])
    shaded = views.shaded_images(rows[batch // 2 :])
    changed = round(len(normals) * AUGMENTED_SHARE)
    normals = torch.cat(
        [rotate_normals(normals[:changed], random_rotations(changed, generator)), normals[changed:]]
    )
    shaded = torch.cat([recolour(shaded[:changed], generator), shaded[changed:]])
    return torch.cat([normals, shaded])


def train_vae(
    vae: nn.Module,
    views: Views,
    schedule: StageSchedule,
    batch: int,
    generator: torch.Generator,
    history: list[dict],
) -> None:
    """Train the VAE with AdamW in float32 and set its scaling factor at the end.

    The loss is the sum of L1 error, squared error and KL divergence.
    """
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    vae.train()
    step, progress = 0, schedule.progress(0)
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = cosine_learning_rate(progress, LEARNING_RATE)
        images = draw_images(views, batch, generator).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(images).latent_dist
        error = vae.decode(_sample(posterior.mean, posterior.std, generator)).sample - images
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
        loss = error.abs().mean() + error.square().mean() + KL_WEIGHT * divergence.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        progress = schedule.progress(step)
        if step % 50 == 0 or progress >= 1:
            record = {"step": step, "l1": error.abs().mean().item(), "kl": divergence.mean().item()}
            history.append(record)
            if step % 500 == 0 or progress >= 1:
                logger.info("vae step %d: L1 %.4f, KL %.2f", step, record["l1"], record["kl"])
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=round(_scaling_factor(vae, views, generator), 5))
    logger.info("vae: scaling factor %.4f", vae.config.scaling_factor)


def _sample(mean: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return mean + deviation * noise


@torch.no_grad()
def _scaling_factor(vae: nn.Module, views: Views, generator: torch.Generator, count: int = 512) -> float:
    """Return 1 / (standard deviation of the latents over both image domains)."""
    rows = torch.randint(
        len(views), (min(count, len(views)),), generator=generator, device=views.category.device
    )
    latents = []
    for chunk in rows.split(64):
        for images in (views.normal_images(chunk), views.shaded_images(chunk)):
            posterior = vae.encode(images).latent_dist
            latents.append(_sample(posterior.mean, posterior.std, generator))
    return 1 / torch.cat(latents).std().item()


@torch.no_grad()
def encode_views(vae: nn.Module, views: Views, chunk: int = 512) -> Latents:
    """Encode all normal and shaded images, and downsample the coarse images to the size of the latents."""
    size = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    parts: dict[str, list[Tensor]] = {}
    for rows in torch.arange(len(views), device=views.category.device).split(chunk):
        for name, images in (("normal", views.normal_images(rows)), ("shaded", views.shaded_images(rows))):
            posterior = vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
            parts.setdefault(f"{name}_mean", []).append(posterior.mean.half())
            parts.setdefault(f"{name}_deviation", []).append(posterior.std.half())
        coarse = F.interpolate(
            views.coarse_images(rows),
            (size, size),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        parts.setdefault("coarse", []).append(coarse.half())
    tensors = {name: torch.cat(chunks).contiguous() for name, chunks in parts.items()}
    labels = {name: getattr(views, name) for name in ("category", "view", "material", "camera")}
    return Latents(**tensors, **labels)
