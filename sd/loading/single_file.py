"""Load the parts of a prior from a single .safetensors checkpoint.

Such a file contains neither a vocabulary nor a noise schedule. CLIP's vocabulary is loaded from a folder
`tokenizer` next to the file, or from the hub. The schedule is the same for 1.x and 2.x. The prediction type
(noise or v) is read from the file's metadata. If the metadata contains no type, a 1.x model predicts noise,
and the type of a 2.x model is determined by an evaluation of the denoiser with pure noise.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from sd.loading import ldm_format as layout
from sd.loading.hub import MODEL_LOCATIONS, fetch
from sd.multi_view import CAMERA_NUMBERS

logger = logging.getLogger(__name__)

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
}
# The latent sizes in training. A 2.x model that predicts v was trained with images of 768 pixels, MVDream
# with images of 256 pixels.
LATENT, LATENT_OF_V, LATENT_OF_VIEWS = 64, 96, 32
TOKENS = 77
VOCABULARY = ("vocab.json", "merges.txt")
# Hub ids with CLIP's vocabulary, which is the same for 1.x and 2.x.
VOCABULARY_HUB_IDS = ("openai/clip-vit-large-patch14",)
START, END = "<|startoftext|>", "<|endoftext|>"


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of denoiser, VAE and text encoder, and the file's metadata.

    Raises ValueError if the file is not a Stable Diffusion 1.x or 2.x checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    prefixes = (layout.UNET, layout.VAE, layout.CLIP, layout.OPEN_CLIP)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            _check_names(path, names)
            return {n: file.get_tensor(n) for n in names if n.startswith(prefixes)}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"sd_model = {str(path)!r}: cannot be read as safetensors: {error}") from error


def _check_names(path: Path, names: list[str]) -> None:
    missing = [name for name in layout.NEEDED if name not in names]
    if not any(name.startswith((layout.CLIP, layout.OPEN_CLIP)) for name in names):
        missing.append("cond_stage_model.*")
    if missing:
        raise ValueError(
            f"sd_model = {str(path)!r}: no Stable Diffusion 1.x or 2.x checkpoint in the original layout, it "
            f"lacks {missing[0]}; name such a file, or a folder in diffusers layout"
        )


def build_modules(weights: layout.Weights, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return the denoiser, the VAE (its decoder has no weights) and the text encoder.

    Raises ValueError if tensor names or shapes do not match the version that the sizes indicate.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    # The modules are built on the meta device, because random initialisation is slow. They get the file's
    # tensors afterwards.
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=LATENT, **layout.denoiser_config(weights))
        vae = AutoencoderKL(**layout.encoder_config(weights))
    # The text encoder is built on the CPU, because it has buffers that are not in the file.
    text_encoder = CLIPTextModel(CLIPTextConfig(**layout.text_config(weights)))
    vae.decoder = vae.post_quant_conv = None
    fill(unet, layout.denoiser_weights(weights), dtype, "denoiser")
    fill(vae, layout.encoder_weights(weights), dtype, "VAE")
    own = [name.startswith("text_model.") for name in text_encoder.state_dict()]
    text = {("text_model." if all(own) else "") + n: v for n, v in layout.text_weights(weights).items()}
    fill(text_encoder, text, dtype, "text encoder")
    return unet, vae, text_encoder


def fill(module: nn.Module, weights: dict[str, Tensor], dtype: torch.dtype, what: str) -> None:
    """Assign all weights of a module. what: the name of the module in error messages.

    Raises ValueError if names or shapes differ.
    """
    try:
        cast = {name: value.to(dtype) for name, value in weights.items()}
        module.load_state_dict(cast, strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the {what} of this checkpoint does not match version 1.x or 2.x: {reason}"
        ) from error


def make_tokenizer(path: Path, second_version: bool):
    """Return CLIP's tokenizer. The padding token is "!" (id 0) in 2.x and the end token in 1.x.

    Raises FileNotFoundError if the vocabulary is not found.
    """
    from transformers import CLIPTokenizer

    folder = find_vocabulary(path)
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=TOKENS,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token="!" if second_version else END,
    )


def find_vocabulary(path: Path) -> Path:
    """Return a folder with vocab.json and merges.txt: `tokenizer` next to the file, or a folder from the
    hub.
    """
    local = path.parent / "tokenizer"
    if all((local / file).is_file() for file in VOCABULARY):
        return local
    locations = [location for model in MODEL_LOCATIONS.values() for location in model]
    mirrors = [location for location in locations if not location.startswith("data/")]
    for hub_id in dict.fromkeys((*VOCABULARY_HUB_IDS, *mirrors)):
        try:
            root = fetch(hub_id, [*VOCABULARY, *(f"tokenizer/{file}" for file in VOCABULARY)])
        except (OSError, ValueError):
            continue
        for folder in (root / "tokenizer", root):
            if all((folder / file).is_file() for file in VOCABULARY):
                return folder
    raise FileNotFoundError(
        f"sd_model = {str(path)!r}: a single file contains no vocabulary, and neither {local} nor the hub "
        f"contains {' and '.join(VOCABULARY)}; copy these two files of CLIP or of any "
        "Stable Diffusion 1.x or 2.x to that folder"
    )


def prediction_from_metadata(metadata: dict[str, str], second_version: bool) -> str | None:
    """Return the prediction type in the metadata. If the metadata contains no type, return "epsilon" for 1.x
    and None for 2.x.
    """
    if stated := metadata.get("modelspec.prediction_type"):
        return "v_prediction" if stated.startswith("v") else stated
    if "-v2-" in metadata.get("modelspec.architecture", ""):
        return "v_prediction" if metadata["modelspec.architecture"].endswith("-v") else "epsilon"
    return None if second_version else "epsilon"


@torch.no_grad()
def prediction_from_output(unet: nn.Module) -> str:
    """Return the prediction type, "epsilon" or "v_prediction", after one evaluation of the denoiser at t =
    999.

    At this t, x_t is nearly pure noise. A prediction of the noise is therefore nearly equal to the input. A
    prediction of v = sqrt(abar) noise − sqrt(1 − abar) x is nearly −x, which is uncorrelated with the input.
    The type is epsilon if the correlation of input and output is above 0.5.
    """
    parameter = next(unet.parameters())
    shape = (1, unet.config.in_channels, LATENT // 2, LATENT // 2)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(parameter)
    text = torch.zeros(1, TOKENS, unet.config.cross_attention_dim).to(parameter)
    camera = {}
    if getattr(unet, "class_embedding", None) is not None:
        camera = {"class_labels": torch.zeros(1, CAMERA_NUMBERS).to(parameter)}
    time = torch.tensor([999], device=parameter.device)
    output = unet(noise, time, text, **camera, return_dict=False)[0]
    correlation = torch.corrcoef(torch.stack([output.flatten(), noise.flatten()]).float())[0, 1].item()
    found = "epsilon" if correlation > 0.5 else "v_prediction"
    logger.info(
        "sd_model: the file does not name its prediction type; a test of the denoiser gives %s", found
    )
    return found
