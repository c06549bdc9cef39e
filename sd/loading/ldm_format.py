"""Tensor names and sizes in the original layout of Stable Diffusion 1.x and 2.x (single-file checkpoints).

Tensor names are mapped to the names in diffusers and transformers. Sizes are inferred from tensor shapes. The
number of heads and the activation follow from the type of the text encoder: CLIP in 1.x, OpenCLIP in 2.x.
Unused parts (the VAE's decoder, the text encoder's projection) are omitted.

The layout is that of the code release of Rombach et al., "High-Resolution Image Synthesis with Latent
Diffusion Models", CVPR 2022.
"""

import re
from collections.abc import Mapping

from torch import Tensor

Weights = Mapping[str, Tensor]
Renames = tuple[tuple[str, str], ...]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
# The name of the weight of the key projection in the first cross-attention. The width of this weight depends
# on the version (1.x or 2.x). XL models have no tensor with this name.
READS = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
NEEDED = (READS, f"{UNET}input_blocks.0.0.weight", f"{VAE}quant_conv.weight", f"{VAE}encoder.conv_in.weight")

SCALING_FACTOR = 0.18215  # the same for 1.x and 2.x (released configs of arXiv 2112.10752)
HEADS_1, HEAD_WIDTH_2 = 8, 64
CLIP_HEAD_WIDTH = 64
# MVDream's checkpoints (arXiv 2308.16512) have a camera embedding and denoise four views together.
CAMERA_EMBEDDING = f"{UNET}camera_embed.0.weight"
VIEWS = 4

RESNET: Renames = (
    (r"in_layers\.0", "norm1"),
    (r"in_layers\.2", "conv1"),
    (r"emb_layers\.1", "time_emb_proj"),
    (r"out_layers\.0", "norm2"),
    (r"out_layers\.3", "conv2"),
    (r"skip_connection", "conv_shortcut"),
)
UNET_ENDS: Renames = (
    (r"^time_embed\.0", "time_embedding.linear_1"),
    (r"^time_embed\.2", "time_embedding.linear_2"),
    (r"^camera_embed\.0", "class_embedding.linear_1"),
    (r"^camera_embed\.2", "class_embedding.linear_2"),
    (r"^input_blocks\.0\.0", "conv_in"),
    (r"^out\.0", "conv_norm_out"),
    (r"^out\.2", "conv_out"),
    (r"^middle_block\.0", "mid_block.resnets.0"),
    (r"^middle_block\.1", "mid_block.attentions.0"),
    (r"^middle_block\.2", "mid_block.resnets.1"),
)
ENCODER: Renames = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"attentions\.0\.norm\.", "attentions.0.group_norm."),
    (r"attentions\.0\.([qkv])\.", r"attentions.0.to_\1."),
    (r"attentions\.0\.proj_out\.", "attentions.0.to_out.0."),
)
TRANSFORMER: Renames = (
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def is_second_version(weights: Weights) -> bool:
    """Return whether the text encoder is OpenCLIP, as in 2.x."""
    return any(name.startswith(OPEN_CLIP) for name in weights)


def part(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`. The prefix is removed from the keys."""
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def denoiser_weights(weights: Weights) -> dict[str, Tensor]:
    """Return the denoiser's tensors with the names of diffusers' UNet2DConditionModel."""
    return {_denoiser_name(name): value for name, value in part(weights, UNET).items()}


def _denoiser_name(name: str) -> str:
    """Return a tensor's name in diffusers' layout.

    In the layout of diffusers, the residual layers and the resizing layer of a level are one block. In the
    original layout, these layers have consecutive numbers.
    """
    for pattern, replacement in UNET_ENDS:
        name = re.sub(pattern, replacement, name)
    if found := re.match(r"input_blocks\.(\d+)\.([01])\.(op\.)?", name):
        block, layer = divmod(int(found[1]) - 1, 3)
        kind = "downsamplers.0.conv" if found[3] else f"{('resnets', 'attentions')[int(found[2])]}.{layer}"
        name = f"down_blocks.{block}.{kind}.{name[found.end() :]}"
    elif found := re.match(r"output_blocks\.(\d+)\.([012])\.(conv\.)?", name):
        block, layer = divmod(int(found[1]), 3)
        # Index 1 is the attention layer, or the upsampling layer in a block without attention.
        kind = "upsamplers.0.conv" if found[3] else f"{('resnets', 'attentions')[int(found[2])]}.{layer}"
        name = f"up_blocks.{block}.{kind}.{name[found.end() :]}"
    return _renamed(name, RESNET) if ".resnets." in name else name


def encoder_weights(weights: Weights) -> dict[str, Tensor]:
    """Return the VAE encoder's tensors with the names of diffusers' AutoencoderKL."""
    found = {}
    for name, value in part(weights, VAE).items():
        if name.startswith(("encoder.", "quant_conv.")):
            name = _renamed(name, ENCODER)
            # The original layout stores the projections of attention as 1 × 1 convolutions, and diffusers
            # stores them as matrices.
            is_attention = ".attentions." in name and value.ndim == 4
            found[name] = value[:, :, 0, 0] if is_attention else value
    return found


def text_weights(weights: Weights) -> dict[str, Tensor]:
    """Return the text encoder's tensors with the names of transformers' CLIPTextModel without "text_model.".

    Version 2.x uses the output of the second-to-last layer, so the last layer is omitted.
    """
    if not is_second_version(weights):
        named = {name.removeprefix("text_model."): value for name, value in part(weights, CLIP).items()}
        return {name: value for name, value in named.items() if not name.endswith("position_ids")}
    found = {}
    own = part(weights, OPEN_CLIP)
    layers = _count(own, r"transformer\.resblocks\.(\d+)")
    last = f"transformer.resblocks.{layers - 1}."
    for name, value in own.items():
        if name.startswith(last) or name in ("text_projection", "logit_scale"):
            continue
        renamed = _renamed(name, TRANSFORMER)
        if ".in_proj_" in renamed:
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                found[renamed.replace("in_proj_", f"{letter}_proj.")] = third
        else:
            found[renamed] = value
    return found


def views(weights: Weights) -> int:
    """Return the number of views that are denoised together: 4 with a camera embedding, otherwise 1."""
    return VIEWS if CAMERA_EMBEDDING in weights else 1


def denoiser_config(weights: Weights) -> dict[str, object]:
    """Return the arguments of UNet2DConditionModel except sample_size."""
    own = part(weights, UNET)
    levels = (_count(own, r"input_blocks\.(\d+)") + 2) // 3
    channels = [
        own[f"input_blocks.{3 * level + 1}.0.out_layers.3.weight"].shape[0] for level in range(levels)
    ]
    attends = [f"input_blocks.{3 * level + 1}.1.norm.weight" in own for level in range(levels)]
    second = is_second_version(weights)
    camera = {}
    if CAMERA_EMBEDDING in weights:
        numbers = weights[CAMERA_EMBEDDING].shape[1]
        camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": numbers}
    down = [("CrossAttn" if attention else "") + "DownBlock2D" for attention in attends]
    up = [("CrossAttn" if attention else "") + "UpBlock2D" for attention in reversed(attends)]
    return {
        "in_channels": own["input_blocks.0.0.weight"].shape[1],
        "out_channels": own["out.2.weight"].shape[0],
        "block_out_channels": tuple(channels),
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "cross_attention_dim": weights[READS].shape[1],
        # diffusers interprets this argument as the number of heads, despite its name.
        "attention_head_dim": [width // HEAD_WIDTH_2 for width in channels] if second else HEADS_1,
        "use_linear_projection": own["input_blocks.1.1.proj_in.weight"].ndim == 2,
        **camera,
    }


def encoder_config(weights: Weights) -> dict[str, object]:
    """Return the arguments of AutoencoderKL."""
    own = part(weights, f"{VAE}encoder.")
    levels = _count(own, r"down\.(\d+)")
    return {
        "block_out_channels": tuple(
            own[f"down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)
        ),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": _count(own, r"down\.0\.block\.(\d+)"),
        "latent_channels": weights[f"{VAE}quant_conv.weight"].shape[0] // 2,
        "scaling_factor": SCALING_FACTOR,
    }


def text_config(weights: Weights) -> dict[str, object]:
    """Return the arguments of CLIPTextConfig."""
    own = text_weights(weights)
    words, width = own["embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": own["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(own, r"encoder\.layers\.(\d+)"),
        "num_attention_heads": width // CLIP_HEAD_WIDTH,
        "max_position_embeddings": own["embeddings.position_embedding.weight"].shape[0],
        "hidden_act": "gelu" if is_second_version(weights) else "quick_gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
    }


def _renamed(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _count(names: Mapping[str, object], pattern: str) -> int:
    """Return 1 + the largest number that the pattern's group matches in the names."""
    return 1 + max(int(found[1]) for name in names if (found := re.match(pattern, name)))
