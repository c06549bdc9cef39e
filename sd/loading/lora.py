"""LoRA files. Their low-rank updates are added to the model's weights when the prior is loaded.

The update of a weight W is W += scale · (alpha / rank) · up @ down, computed in float32 (Hu et al., "LoRA:
Low-Rank Adaptation of Large Language Models", ICLR 2022). The key names of kohya's trainer, diffusers and
peft are supported. For a convolution, down is [r, in, h, w] and up is [out, r, 1, 1].
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# The suffixes that follow a layer's name in a key, for each role of a tensor.
ROLES = {
    "down": re.compile(
        r"(\.lora_down|\.lora_A(\.default)?|\.lora\.down|_lora\.down|\.lora_linear_layer\.down)\.weight$"
    ),
    "up": re.compile(
        r"(\.lora_up|\.lora_B(\.default)?|\.lora\.up|_lora\.up|\.lora_linear_layer\.up)\.weight$"
    ),
    "alpha": re.compile(r"\.alpha$"),
}
# The prefixes of a layer's name in a key, and the part of the model for each prefix. A name without a prefix
# belongs to the denoiser.
PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "base_model.model.": "unet",
}
PEFT_PREFIX = "base_model.model."
# The beginnings of peft's names for the layers of a CLIPTextModel. They are needed because peft uses the same
# prefix for the text encoder and the denoiser. No layer name of a denoiser begins with one of these strings.
TEXT_ENCODER_LAYER = re.compile(r"(text_model\.|encoder\.layers\.|embeddings\.|final_layer_norm$)")
# peft settings that change the formula W + scale · (alpha / rank) · up @ down. Files with these settings are
# rejected.
UNSUPPORTED_SETTINGS = ("use_rslora", "use_dora", "alpha_pattern")


@dataclass
class LowRank:
    """The update of one layer. If alpha is None, the factor alpha / rank is 1."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | float | None = None
    names: list[str] = field(default_factory=list)

    def product(self, shape: torch.Size) -> Float[Tensor, "..."]:
        """Return (alpha / rank) up @ down in float32 with the shape of the layer's weight."""
        down, up = self.down.float().flatten(1), self.up.float().flatten(1)
        rank = len(down)
        factor = 1.0 if self.alpha is None else float(self.alpha) / rank
        return (factor * (up @ down)).reshape(shape)


def parse_lora(entry: str) -> tuple[Path, float]:
    """Return path and scale from "file.safetensors" (scale 1) or "file.safetensors:0.7".

    Raises FileNotFoundError or ValueError if the path is not a .safetensors file.
    """
    path, scale = re.fullmatch(r"(.+?)(?::([+-]?(?:\d+\.?\d*|\.\d+)))?", entry, re.S).groups()
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"lora = {entry!r}: file {path} does not exist; give the path of a LoRA file, or PATH:SCALE"
        )
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"lora = {entry!r}: a LoRA must be a .safetensors file; convert it first")
    return Path(path), 1.0 if scale is None else float(scale)


def apply_lora(unet: nn.Module, text_encoder: nn.Module, entries: Sequence[str]) -> None:
    """Add the updates of each file (see `parse_lora`) to the weights of the denoiser and the text encoder.

    Raises ValueError if a file is not a LoRA file or belongs to another model. After this
    error, some weights may already be updated.
    """
    if not entries:
        return
    layers = {"unet": _layers(unet), "text_encoder": _layers(text_encoder)}
    for entry in entries:
        path, scale = parse_lora(entry)
        try:
            count = _apply_file(path, scale, layers)
        except (ValueError, OSError) as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"lora: {path}: {error}") from error
        except Exception as error:  # Wrong types and shapes raise errors of many types.
            raise ValueError(f"lora: {path}: cannot be read: {type(error).__name__}: {error}") from error
        logger.info("lora: %s changes %d layers, scale %g", path, count, scale)


def _apply_file(path: Path, scale: float, layers: dict[str, dict[str, nn.Parameter]]) -> int:
    """Add the updates of one file and return the number of updated layers."""
    changes = read_lora(path)
    for (part, name), change in changes.items():
        # The output projection of attention is item 0 of a list. Some files omit this index, so both names
        # are tried.
        weight = layers[part].get(name, layers[part].get(f"{name}_0"))
        _add(path, weight, change, scale)
    return len(changes)


@torch.no_grad()
def _add(path: Path, weight: nn.Parameter | None, change: LowRank, scale: float) -> None:
    name = change.names[0]
    if weight is None:
        raise ValueError(
            f"lora: {path}: {name} is not a layer of this model; the LoRA was trained for another one"
        )
    if change.down is None or change.up is None:
        raise ValueError(f"lora: {path}: {name} is incomplete: one of its two matrices is missing")
    if min(change.down.dim(), change.up.dim()) < 2 or min(change.down.numel(), change.up.numel()) == 0:
        shapes = f"{tuple(change.up.shape)} times {tuple(change.down.shape)}"
        raise ValueError(f"lora: {path}: {name} is {shapes}, which is not a low-rank product")
    if not (change.down.isfinite().all() and change.up.isfinite().all()):
        raise ValueError(f"lora: {path}: {name} contains NaN or infinity; download the file again")
    fits = change.down.shape[0] == change.up[0].numel()
    fits = fits and len(change.up) == len(weight) and change.down[0].numel() == weight[0].numel()
    if not fits:
        shapes = f"{tuple(change.up.shape)} times {tuple(change.down.shape)}"
        raise ValueError(
            f"lora: {path}: {name} is {shapes}, the layer {tuple(weight.shape)}; the LoRA was trained for "
            "another model (1.x and 2.x differ)"
        )
    weight.copy_((weight.float() + scale * change.product(weight.shape)).to(weight.dtype))


def _layers(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return a dict from flat layer names to weights.

    In a flat name, dots are replaced by underscores and a leading text_model is removed.
    """
    return {
        name.removesuffix(".weight").replace(".", "_").removeprefix("text_model_"): parameter
        for name, parameter in module.named_parameters()
        if name.endswith(".weight")
    }


def read_lora(path: Path) -> dict[tuple[str, str], LowRank]:
    """Return the updates in a file. The keys are (part, flat layer name).

    Raises ValueError if the file is not readable or contains anything other than low-rank products.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[tuple[str, str], LowRank] = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            alphas = _alphas_outside_tensors(path, names, file.metadata() or {})
            for name in names:
                part, layer, role = _address(path, name)
                change = found.setdefault((part, layer), LowRank(alpha=alphas.get(part)))
                setattr(change, role, file.get_tensor(name))
                change.names.append(name)
    except SafetensorError as error:
        raise ValueError(f"lora: {path}: cannot be read as safetensors: {error}") from error
    if not found:
        raise ValueError(f"lora: {path}: the file contains no layers")
    return found


def _address(path: Path, name: str) -> tuple[str, str, str]:
    """Return part, flat layer name and role of a tensor."""
    split = [(role, found) for role, ending in ROLES.items() if (found := ending.search(name))]
    if not split:
        raise ValueError(
            f"lora: {path}: {name} is not part of a low-rank product; supported are LoRA files of kohya's "
            "trainer, diffusers and peft, but not LoHa, LoKr or DoRA"
        )
    role, ending = split[0]
    layer = name[: ending.start()]
    prefix = next((candidate for candidate in PREFIXES if layer.startswith(candidate)), "")
    part, layer = PREFIXES.get(prefix, "unet"), layer[len(prefix) :]
    if prefix == PEFT_PREFIX and TEXT_ENCODER_LAYER.match(layer):
        part = "text_encoder"
    flat = layer.replace(".processor.", ".").replace(".", "_").removeprefix("text_model_")
    if part == "text_encoder":
        # diffusers before version 0.18 uses the denoiser's names for the text encoder's projections.
        flat = re.sub(r"(self_attn)_to_(q|k|v|out)$", r"\1_\2_proj", flat)
    return part, flat, role


def _alphas_outside_tensors(path: Path, names: list[str], metadata: dict[str, str]) -> dict[str, float]:
    """Return the alpha of each part if it is stored in metadata (diffusers) or JSON (peft) and not in a
    tensor.
    """
    settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    if any(name.startswith(PEFT_PREFIX) for name in names):
        settings_file = path.with_name("adapter_config.json")
        if not settings_file.is_file():
            missing = f"peft's {settings_file.name}, which contains lora_alpha, is missing in the same folder"
            raise ValueError(f"lora: {path}: {missing}")
        own = json.loads(settings_file.read_text(encoding="utf-8"))
        settings = {f"{part}.{key}": value for part in ("unet", "text_encoder") for key, value in own.items()}
    for key, value in settings.items():
        if key.rpartition(".")[2] in UNSUPPORTED_SETTINGS and value:
            raise ValueError(f"lora: {path}: {key} is {value!r}, which is not supported")
    return {
        part: float(settings[f"{part}.lora_alpha"])
        for part in ("unet", "text_encoder")
        if f"{part}.lora_alpha" in settings
    }
