"""Export of the embedded prior to a folder, and initialisation from such a folder."""

import json
import logging
import shutil
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from data.make_tiny_sd import networks
from data.make_tiny_sd.captions import readable_name
from data.make_tiny_sd.compile import predict
from data.make_tiny_sd.model_card import model_card
from data.make_tiny_sd.renders import Views
from data.make_tiny_sd.run import Run
from data.make_tiny_sd.samples import data_grid, domain_means, sample_grids
from data.make_tiny_sd.train_unet import DOMAINS, Denoiser
from data.make_tiny_sd.train_vae import Latents
from render.camera import orbit
from sd.conditions import ViewConditions
from sd.multi_view import camera_matrices
from sd.stable_diffusion import StableDiffusion

logger = logging.getLogger(__name__)

TILE = 64
JOINT = (
    " The denoiser takes {views} views of an object together, with their cameras and without view words. The "
    "columns of the samples are groups of views around one object."
)


def export(run: Run, denoiser: Denoiser, vae: nn.Module, tokenizer, latents: Latents, views: Views) -> None:
    """Write the averaged weights to a folder in diffusers layout with a model card.

    Sample grids are written to the work folder afterwards, so an error in sampling does not lose the weights.
    """
    unet, text_encoder = denoiser.averages
    out, work = run.options.out, run.work
    staging = out.with_name(f".{out.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    networks.save_pretrained(staging, unet, vae, text_encoder, work / "tokenizer")
    names = [readable_name(category) for category in run.data.categories]
    (staging / "categories.json").write_text(json.dumps(names) + "\n")
    (staging / "README.md").write_text(model_card(run.data, _figures(run, denoiser, vae, views)))
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)
    means = domain_means(latents, vae.config.scaling_factor)
    sample_grids((unet, text_encoder, vae), tokenizer, run.data.categories, means, work, run.autocast)
    write_sample_sheet([work / f"samples_{domain}.png" for domain in DOMAINS], run.shape.image_size, out)
    data_grid(vae, views, len(run.data.categories), work / "data_and_vae.png")
    check(out, unet, text_encoder, tokenizer)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    logger.info("%s: %.1f MB", out, size / 1e6)


@torch.no_grad()
def check(folder: Path, unet: nn.Module, text_encoder: nn.Module, tokenizer) -> None:
    """Log the difference between the predictions of the exported networks and of those in memory."""
    loaded = StableDiffusion.from_pretrained(str(folder), torch.device("cpu"))
    device = next(unet.parameters()).device
    generator = torch.Generator().manual_seed(0)
    size = unet.config.sample_size
    noisy = torch.randn(loaded.views, networks.LATENT_CHANNELS, size, size, generator=generator)
    captions, timesteps = ["a photo of a mug"] * loaded.views, torch.full((loaded.views,), 500)
    cameras = orbit(loaded.views, (8, 8)).world_to_clip
    found = loaded.predict_noise(noisy, timesteps, loaded.embed(captions), ViewConditions(cameras))
    text = networks.embed(text_encoder, networks.tokenize(tokenizer, captions).to(device)).float()
    camera = camera_matrices(cameras).to(device) if loaded.takes_cameras else None
    expected = predict(unet, noisy.to(device), timesteps.to(device), text, camera)
    difference = ((found - expected.cpu()).norm() / expected.norm().cpu()).item()
    logger.log(
        logging.INFO if difference < 0.05 else logging.ERROR,
        "export: the folder loads; relative difference of its prediction from the trained weights' %.4f",
        difference,
    )


def write_sample_sheet(paths: list[Path], tile: int, folder: Path) -> None:
    """Write samples.jpg, the picture in the model card: the grids side by side with TILE pixels per image."""
    grids = [Image.open(path) for path in paths]
    scaled = [
        grid.resize((grid.width * TILE // tile, grid.height * TILE // tile), Image.BOX) for grid in grids
    ]
    row = Image.new("RGB", (sum(grid.width for grid in scaled), scaled[0].height))
    left = 0
    for grid in scaled:
        row.paste(grid, (left, 0))
        left += grid.width
    row.save(folder / "samples.jpg", quality=85)


def _figures(run: Run, denoiser: Denoiser, vae: nn.Module, views: Views) -> dict:
    counts = {name: networks.parameter_count(network) / 1e6 for name, network in (
        ("unet", denoiser.unet), ("vae", vae), ("text", denoiser.text_encoder)
    )}  # fmt: skip
    last = denoiser.history[-1] if denoiser.history else {}
    device = torch.cuda.get_device_name() if run.device.type == "cuda" else "a CPU"
    if run.distributed.world_size > 1:
        device = f"{run.distributed.world_size} × {device}"
    return {
        **counts,
        "millions": sum(counts.values()),
        "latent": run.shape.latent_size,
        "image": run.shape.image_size,
        "instances": run.distributed.world_size * len(views) // (run.data.views * len(run.data.categories)),
        "device": device,
        "total": denoiser.spent_seconds / 60,
        "steps_done": denoiser.step,
        "batch": run.options.batch * run.distributed.world_size,
        "start": f", from the weights in {run.options.init}" if run.options.init else "",
        "losses": ", ".join(f"{domain} {last[domain]:.4f}" for domain in DOMAINS if domain in last)
        or "not noted",
        "scaling": vae.config.scaling_factor,
        "torch_version": torch.__version__,
        "view_share": run.view_share,
        "joint": JOINT.format(views=run.shape.views) if run.shape.views > 1 else "",
    }


def start_from(folder: Path, networks: tuple[nn.Module, nn.Module, nn.Module], tokenizer) -> None:
    """Copy the weights of an exported folder into (unet, vae, text encoder).

    A token embedding is copied to the token with the same text, because the numbers of the tokens depend on
    the categories.

    Raises:
        ValueError: if the sizes of the networks differ.
    """
    from safetensors.torch import load_file

    unet, vae, text_encoder = networks
    try:
        for network, name in ((unet, "unet"), (vae, "vae")):
            weights = load_file(folder / name / "diffusion_pytorch_model.safetensors")
            # If the folder has no camera embedding, a denoiser of several views keeps its untrained
            # embedding.
            camera = {key: v for key, v in network.state_dict().items() if key.startswith("class_embedding.")}
            network.load_state_dict(camera | weights)
        from transformers import CLIPTextModel

        initial = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        weights, current = initial.state_dict(), text_encoder.state_dict()
        words = next(name for name in current if name.endswith("token_embedding.weight"))
        old_vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
        embeddings = current[words].clone()
        for word, number in tokenizer.get_vocab().items():
            if word in old_vocabulary:
                embeddings[number] = weights[words][old_vocabulary[word]]
        text_encoder.load_state_dict({**weights, words: embeddings})
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--init {folder}: cannot initialise from it: {reason}") from error
    vae.register_to_config(
        scaling_factor=json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"]
    )
