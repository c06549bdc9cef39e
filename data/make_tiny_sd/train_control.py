"""Train a depth ControlNet for the embedded prior.

    python3 -m data.make_tiny_sd.train_control --prior data/tiny-sd --out out/tiny-control-depth --minutes 3

The command renders shaded views of procedural objects with their depth images, encodes them with the VAE of
the prior, and trains a ControlNet (arXiv 2302.05543) that starts from the prior's denoiser. The prior is
frozen. The result is a folder in diffusers layout for the config key control_model. The command is meant for
one GPU. `--toy` trains a few steps on a CPU.
"""

import argparse
import json
import logging
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

# This variable must be set before torch is imported. Without it, idle OpenMP threads wait in a busy loop,
# which slows down the program if other processes are busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from data.make_tiny_sd import networks
from data.make_tiny_sd.captions import CaptionTable
from data.make_tiny_sd.compile import autocast_for
from data.make_tiny_sd.lr_schedule import StageSchedule, cosine_learning_rate
from data.make_tiny_sd.renders import CATEGORIES, DataConfig, Views, load_views, render_shards
from data.make_tiny_sd.train_vae import Latents, encode_views
from dataset.cameras import step_generator
from render.shade.light import LightConfig
from sd.control_net import controlled_noise_of
from training.console import run_tool
from training.launch import run_and_exit

logger = logging.getLogger(__name__)

LEARNING_RATE = 3e-4
STREAM = 12
RENDERING_SHARE = 0.3
REPORT_EVERY = 200
# Channels of the layers that encode the control image. Each layer after the first halves the image size.
EMBEDDING_CHANNELS = (16, 32, 64)
CARD = """---
license: apache-2.0
library_name: diffusers
---
# A depth ControlNet for data/tiny-sd

Config keys: `"control_model": "{folder}", "control": "depth"`, in appearance_modeling. Apache-2.0, weights
included. Trained from the weights of data/tiny-sd on this project's own renders by
`python3 -m data.make_tiny_sd.train_control`: {steps} steps of batch {batch} on {device}, {views} views. Mean
squared error of the predicted noise on the same batches: {controlled:.4f} with the ControlNet, {plain:.4f}
without it. {millions:.2f} M parameters in half precision.
"""


@dataclass(frozen=True)
class Prior:
    """The frozen networks of a prior in single precision, and the prior's tokenizer."""

    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: object


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="data.make_tiny_sd.train_control", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--prior", type=Path, default=Path("data/tiny-sd"), help="folder of the prior")
    add("--out", type=Path, required=True, help="the folder to write")
    add("--work", type=Path, default=Path("out/tiny-control-work"), help="rendered views")
    add("--minutes", type=float, default=3.0, help="time for rendering and training")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--categories", nargs="+", choices=CATEGORIES, metavar="CATEGORY", help="default: all of the prior")
    add("--instances", type=int, default=100, help="maximum number of objects per category")
    add("--batch", type=int, default=256)
    add("--workers", type=int, help="rendering processes; default 6 on CUDA, else 0 (this one)")
    add("--seed", type=int, default=2)
    add("--toy", action="store_true", help="few objects and steps, for a test")
    options = parser.parse_args(arguments)
    if options.workers is None:
        options.workers = 6 if options.device.startswith("cuda") else 0
    return options


def load_prior(folder: Path, device: torch.device) -> Prior:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    tokenizer = networks.load_tokenizer(folder / "tokenizer")
    frozen = (network.to(device).eval().requires_grad_(False) for network in (unet, vae, text_encoder))
    return Prior(*frozen, tokenizer)


def rendered_views(options: argparse.Namespace, image_size: int, device: torch.device) -> Views:
    """Return views with depth images.

    Views that an earlier call rendered with the same settings are loaded and not rendered again.
    """
    data = DataConfig(instances=options.instances, image_size=image_size, seed=options.seed, depth=True)
    if options.categories:
        data = replace(data, categories=tuple(options.categories))
    if options.toy:
        data = replace(data, instances=1, views=4, grid=32, environment=LightConfig(env_resolution=64))
    # held_out is omitted from the text of the settings, because the order of a set is not reproducible.
    settings, path = str(replace(data, held_out=frozenset())), options.work / "settings.txt"
    if not path.exists() or path.read_text() != settings:
        shutil.rmtree(options.work, ignore_errors=True)
        render_shards(data, options.work, device, RENDERING_SHARE * options.minutes * 60, options.workers)
        path.write_text(settings)
    return load_views(options.work, device)


@dataclass
class Trainer:
    """State of the training: the ControlNet, the frozen prior and the data."""

    prior: Prior
    control_net: nn.Module
    views: Views
    latents: Latents
    captions: CaptionTable
    tokens: Int[Tensor, "C 77"]

    def errors(
        self, batch: int, abar: Float[Tensor, " T"], generator: torch.Generator, with_control: bool = True
    ) -> Float[Tensor, " B"]:
        """Draw a batch of shaded views and return the mean squared error of the predicted noise per image."""
        latents, device = self.latents, abar.device

        def normal(shape: torch.Size) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        rows = torch.randint(len(self.views), (batch,), generator=generator, device=device)
        mean = latents.shaded_mean[rows].float()
        x0 = mean + latents.shaded_deviation[rows].float() * normal(mean.shape)
        x0 = x0 * self.prior.vae.config.scaling_factor
        labels = (latents.category[rows], latents.view[rows], latents.material[rows])
        chosen = self.tokens[self.captions.draw(*labels, generator)]
        timesteps = torch.randint(len(abar), (batch,), generator=generator, device=device)
        noise, signal = normal(x0.shape), abar[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * x0 + (1 - signal).sqrt() * noise
        image = (self.views.depth[rows].float() / 255).expand(-1, 3, -1, -1)
        with autocast_for(device)():
            text = networks.embed(self.prior.text_encoder, chosen).float()
            weight = abar.new_full((), float(with_control))
            found = controlled_noise_of(
                self.prior.unet, self.control_net, noisy, timesteps, text, image, weight
            )
        return (found.float() - noise).square().mean(dim=(1, 2, 3))


def make_trainer(options: argparse.Namespace, device: torch.device) -> Trainer:
    from diffusers import ControlNetModel

    prior = load_prior(options.prior, device)
    levels = len(prior.vae.config.block_out_channels)
    views = rendered_views(options, prior.unet.config.sample_size * 2 ** (levels - 1), device)
    control_net = ControlNetModel.from_unet(
        prior.unet, conditioning_embedding_out_channels=EMBEDDING_CHANNELS[:levels]
    )
    captions = CaptionTable(tuple(options.categories or CATEGORIES))
    tokens = networks.tokenize(prior.tokenizer, captions.captions).to(device)
    return Trainer(
        prior, control_net.to(device).train(), views, encode_views(prior.vae, views), captions, tokens
    )


def train(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    schedule = StageSchedule(options.minutes * 60, steps=3 if options.toy else None)
    trainer = make_trainer(options, device)
    batch = 4 if options.toy else options.batch
    abar = networks.build_scheduler().alphas_cumprod.to(device)
    parameters = list(trainer.control_net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    seeded = step_generator(options.seed, 0, 0, STREAM)
    generator = torch.Generator(device).manual_seed(seeded.initial_seed())
    step, progress = 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = cosine_learning_rate(progress, LEARNING_RATE)
        error = trainer.errors(batch, abar, generator).mean()
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step, progress = step + 1, schedule.progress(step + 1)
        if step % REPORT_EVERY == 0:
            logger.info("step %d (%.0f %%): error %.4f", step, 100 * progress, error.item())
            if not error.isfinite():
                raise FloatingPointError(f"the error is {error.item()} at step {step}")
    export(options, trainer, step, batch, compared(trainer, abar, batch))


@torch.no_grad()
def compared(trainer: Trainer, abar: Tensor, batch: int, repeats: int = 4) -> tuple[float, float]:
    """Return the mean squared errors with and without the ControlNet, on the same batches."""
    means = []
    for with_control in (True, False):
        generator = torch.Generator(abar.device).manual_seed(0)
        errors = [trainer.errors(batch, abar, generator, with_control) for _ in range(repeats)]
        means.append(torch.cat(errors).mean().item())
    return means[0], means[1]


def export(
    options: argparse.Namespace, trainer: Trainer, steps: int, batch: int, errors: tuple[float, float]
) -> None:
    """Write the ControlNet in half precision with a README."""
    out = options.out
    networks.as_dtype(trainer.control_net, torch.float16).save_pretrained(out, safe_serialization=True)
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else "a CPU"
    figures = {
        "folder": out.as_posix(),
        "steps": steps,
        "batch": batch,
        "device": device,
        "views": len(trainer.views),
        "controlled": errors[0],
        "plain": errors[1],
        "millions": networks.parameter_count(trainer.control_net) / 1e6,
    }
    (out / "README.md").write_text(CARD.format(**figures), encoding="utf-8")
    logger.info("%s written: %s", out, json.dumps({"with": errors[0], "without": errors[1]}))


def main(arguments: list[str] | None = None) -> int:
    return run_tool(lambda: train(parse(arguments)))


if __name__ == "__main__":
    run_and_exit(main)
