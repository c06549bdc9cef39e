"""Sample grids by DDIM, grids of the training data, and plots of the losses."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor, nn

from data.make_tiny_sd.captions import plain_caption
from data.make_tiny_sd.compile import predict
from data.make_tiny_sd.networks import build_scheduler, embed, tokenize
from data.make_tiny_sd.renders import Views
from data.make_tiny_sd.train_vae import Latents
from render.camera import orbit
from sd.multi_view import camera_matrices, stated_views
from sd.prompts import VIEW_SUFFIXES

GUIDANCE = 3.0
STEPS = 30
# Caption endings of the samples of a category: two without a view, then two each for front, side and back.
ENDINGS = ("", "", *(ending for ending in VIEW_SUFFIXES for _ in range(2)))


def domain_means(latents: Latents, scaling_factor: float) -> dict[str, Float[Tensor, "1 4 s s"]]:
    """Return the mean x_0 of each domain. Sampling starts from noise around this mean.

    In Stable Diffusion's noise schedule, abar (the share of x_0 in the variance) ends at 0.0047 and not at 0.
    So the image at the last diffusion step still contains a small part of x_0, and this part determines the
    domain (the background) of a sample.
    """
    coarse = latents.coarse.float().mean(0, keepdim=True)
    # Randomly rotated normals have the mean 0, so only the mean of the mask is kept.
    coarse[:, :3] = 0
    return {
        "coarse": coarse,
        "normal": latents.normal_mean.float().mean(0, keepdim=True) * scaling_factor,
        "shaded": latents.shaded_mean.float().mean(0, keepdim=True) * scaling_factor,
    }


@torch.no_grad()
def ddim(
    unet: nn.Module,
    text: Float[Tensor, "B L D"],
    empty: Float[Tensor, "1 L D"],
    mean: Float[Tensor, "1 4 s s"],
    generator: torch.Generator,
    camera: Float[Tensor, "B 16"] | None = None,
) -> Float[Tensor, "B 4 s s"]:
    """Sample with STEPS deterministic DDIM steps and classifier-free guidance, from noise around `mean`.

    camera: the cameras, if the denoiser processes several views together.
    """
    scheduler = build_scheduler()
    scheduler.set_timesteps(STEPS)
    signal = scheduler.alphas_cumprod[scheduler.timesteps[0]]
    size = (len(text), *mean.shape[1:])
    noise = torch.randn(size, generator=generator, device=text.device)
    latents = signal.sqrt() * mean + (1 - signal).sqrt() * noise
    both = torch.cat([empty.expand_as(text), text])
    cameras = None if camera is None else torch.cat([camera, camera])
    for timestep in scheduler.timesteps:
        steps = torch.full((2 * len(text),), int(timestep), device=text.device)
        predicted = predict(unet, torch.cat([latents, latents]), steps, both, cameras)
        unconditional, conditional = predicted.chunk(2)
        noise_prediction = unconditional + GUIDANCE * (conditional - unconditional)
        latents = scheduler.step(noise_prediction, timestep, latents).prev_sample
    return latents


@torch.no_grad()
def sample_grids(
    networks: tuple[nn.Module, nn.Module, nn.Module],
    tokenizer,
    categories: tuple[str, ...],
    means: dict[str, Tensor],
    folder: Path,
    autocast: Callable,
    *,
    seed: int = 0,
) -> None:
    """Write samples_<domain>.png with one row per category and one column per element of ENDINGS.

    networks: unet, text encoder, vae. For a denoiser of several views, a row consists of groups of views
    around an object, and captions do not contain the view.
    """
    unet, text_encoder, vae = networks
    device, views = next(unet.parameters()).device, stated_views(unet.config)
    endings = ENDINGS if views == 1 else ("",) * len(ENDINGS)
    captions = [plain_caption(category) + ending for category in categories for ending in endings]
    camera = None
    if views > 1:
        around = camera_matrices(orbit(views, (8, 8)).world_to_clip).to(device)
        camera = around.repeat(len(captions) // views, 1)
    with autocast():
        text = embed(text_encoder, tokenize(tokenizer, captions).to(device)).float()
        empty = embed(text_encoder, tokenize(tokenizer, [""]).to(device)).float()
        for domain, mean in means.items():
            generator = torch.Generator(device).manual_seed(seed)
            latents = ddim(unet, text, empty, mean.to(device), generator, camera).float()
            if domain == "coarse":
                pictures = F.interpolate(latents[:, :3], scale_factor=4.0, mode="nearest")
            else:
                pictures = torch.cat(
                    [vae.decode(part / vae.config.scaling_factor).sample for part in latents.split(32)]
                )
            save_grid(pictures.float(), len(ENDINGS), folder / f"samples_{domain}.png")


@torch.no_grad()
def data_grid(vae: nn.Module, views: Views, categories: int, path: Path, columns: int = 4) -> None:
    """Write an image with views of each category: normals and shaded images, each with its reconstruction.

    The reconstruction is the result of encoding and decoding with the VAE.
    """
    rows = []
    for category in range(categories):
        chosen = (views.category == category).nonzero()[:columns, 0]
        for images in (views.normal_images(chosen), views.shaded_images(chosen)):
            rows += [images, vae.decode(vae.encode(images).latent_dist.mean).sample.float()]
    save_grid(torch.cat(rows), 4 * columns, path)


def save_grid(images: Float[Tensor, "N 3 H W"], columns: int, path: Path) -> None:
    """Write images in [−1, 1] as a PNG with `columns` images per row."""
    height, width = images.shape[2:]
    grid = images.clamp(-1, 1).unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)
    array = ((grid.reshape(-1, columns * width, 3) + 1) * 127.5).round().byte().cpu().numpy()
    assert array.shape[0] % height == 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def plot_curves(history: list[dict], names: tuple[str, ...], path: Path) -> None:
    """Plot losses against steps on a logarithmic scale, one colour per curve."""
    if len(history) < 2:
        return
    width, height, margin = 720, 400, 48
    colours = ("#c0392b", "#2471a3", "#1e8449", "#7d3c98")
    values = torch.tensor([[max(record[name], 1e-6) for name in names] for record in history]).log10()
    steps = torch.tensor([float(record["step"]) for record in history])
    low, high = values.min().item(), max(values.max().item(), values.min().item() + 1e-3)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    across = margin + (steps - steps[0]) / (steps[-1] - steps[0]) * (width - 2 * margin)
    for number, name in enumerate(names):
        down = margin + (high - values[:, number]) / (high - low) * (height - 2 * margin)
        points = list(zip(across.tolist(), down.tolist(), strict=True))
        draw.line(points, fill=colours[number % len(colours)], width=2)
        draw.text((margin + 110 * number, 12), name, fill=colours[number % len(colours)])
    draw.text((4, margin - 6), f"{10**high:.3g}", fill="black")
    draw.text((4, height - margin - 6), f"{10**low:.3g}", fill="black")
    draw.text((margin, height - margin + 8), f"step {int(steps[0])}", fill="black")
    draw.text((width - 2 * margin, height - margin + 8), f"step {int(steps[-1])}", fill="black")
    picture.save(path)
