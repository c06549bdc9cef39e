"""The networks of the embedded prior: a small Stable Diffusion in diffusers layout.

The layout of the denoiser was selected by its run time on 2 CPU cores (batch of 8 latents of 32×32×4, 77
tokens). Two layouts were compared. The selected one has four levels (48, 96, 128, 128), attention at 8×8 and
4×4, and 7.4 M parameters. The other has three levels (48, 96, 192), attention at 16×16 and 8×8, and 9.4 M
parameters. The selected layout takes 0.7 of the time of the other layout, in which attention at 16×16 takes
most of the time.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sd.multi_view import CAMERA_NUMBERS, join_views

# Stable Diffusion's noise schedule and the settings of its DDIM sampler.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Shape:
    """Sizes of the three networks. The side of an image is four times the side of its latent."""

    latent_size: int = 32
    unet: tuple[int, ...] = (48, 96, 128, 128)
    # Number of levels with self-attention and cross-attention, counted from the lowest resolution. The middle
    # block always has attention.
    attention_levels: int = 2
    heads: int = 4
    groups: int = 16
    vae: tuple[int, ...] = (16, 32, 64)
    vae_groups: int = 8
    text_width: int = 128
    text_layers: int = 3
    # Number of views that the denoiser processes together, with their cameras (sd/multi_view.py).
    views: int = 1

    @property
    def image_size(self) -> int:
        return self.latent_size * 2 ** (len(self.vae) - 1)


TOY_SHAPE = Shape(
    latent_size=8, unet=(16, 16), attention_levels=1, heads=2, groups=4, vae=(8, 8, 8), vae_groups=4,
    text_width=16, text_layers=1,
)  # fmt: skip


def build_unet(shape: Shape):
    """Build the denoiser.

    For several views the denoiser has a camera embedding. The last layer of the embedding is initialised with
    0, so that the embedding has no effect before training.
    """
    from diffusers import UNet2DConditionModel

    plain = len(shape.unet) - shape.attention_levels
    down = ["DownBlock2D"] * plain + ["CrossAttnDownBlock2D"] * shape.attention_levels
    up = ["CrossAttnUpBlock2D"] * shape.attention_levels + ["UpBlock2D"] * plain
    cameras = {}
    if shape.views > 1:
        cameras = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA_NUMBERS}
    unet = UNet2DConditionModel(
        sample_size=shape.latent_size,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=shape.unet,
        layers_per_block=1,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=shape.text_width,
        attention_head_dim=shape.heads,
        norm_num_groups=shape.groups,
        use_linear_projection=True,
        **cameras,
    )
    if shape.views > 1:
        nn.init.zeros_(unet.class_embedding.linear_2.weight)
        nn.init.zeros_(unet.class_embedding.linear_2.bias)
        unet.register_to_config(views=shape.views)
        join_views(unet, shape.views)
    return unet


def build_vae(shape: Shape):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(shape.vae),
        up_block_types=["UpDecoderBlock2D"] * len(shape.vae),
        block_out_channels=shape.vae,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=shape.vae_groups,
        sample_size=shape.image_size,
        # Attention over all latent pixels would double the encoder's time. It is not needed for images of a
        # single object.
        mid_block_add_attention=False,
    )


def build_text_encoder(shape: Shape, tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.text_width,
            projection_dim=shape.text_width,
            intermediate_size=4 * shape.text_width,
            num_hidden_layers=shape.text_layers,
            num_attention_heads=max(shape.text_width // 32, 1),
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULE)


def load_tokenizer(folder: Path):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer, captions: list[str]) -> torch.Tensor:
    """Return the token ids [N,77] of the captions, padded as in Stable Diffusion."""
    length = tokenizer.model_max_length
    return tokenizer(
        captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def embed(text_encoder, tokens: torch.Tensor) -> torch.Tensor:
    """Return the hidden states [N,77,D] of all tokens. As in Stable Diffusion, padding is not masked."""
    return text_encoder(tokens).last_hidden_state


def save_pretrained(
    folder: Path, unet: nn.Module, vae: nn.Module, text_encoder: nn.Module, tokenizer, dtype=torch.float16
) -> None:
    """Write the five components of the pipeline and model_index.json. The networks are written as `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        as_dtype(network, dtype).save_pretrained(folder / name, safe_serialization=True)
    build_scheduler().save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir(exist_ok=True)
    for path in tokenizer.iterdir():
        (folder / "tokenizer" / path.name).write_bytes(path.read_bytes())
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def as_dtype(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of the network on the CPU as `dtype`, with contiguous weights."""
    duplicate = copy.deepcopy(network).cpu()
    for parameter in duplicate.parameters():
        parameter.data = parameter.data.to(dtype).contiguous(memory_format=torch.contiguous_format)
    return duplicate


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
