"""LoRA files: low-rank changes of a model's weights, added to them once when the prior is loaded.

W += scale · (alpha / rank) · up @ down, in float32 (Hu et al., "LoRA: Low-Rank Adaptation of Large Language
Models", ICLR 2022). Layers may be named as kohya's trainer, diffusers or peft name them. Convolutions work
as well: down is [r, in, h, w] there and up [out, r, 1, 1].
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

# What stands after a layer's name, by the role of the tensor.
ROLES = {
    "down": re.compile(
        r"(\.lora_down|\.lora_A(\.default)?|\.lora\.down|_lora\.down|\.lora_linear_layer\.down)\.weight$"
    ),
    "up": re.compile(
        r"(\.lora_up|\.lora_B(\.default)?|\.lora\.up|_lora\.up|\.lora_linear_layer\.up)\.weight$"
    ),
    "alpha": re.compile(r"\.alpha$"),
}
# What stands before it, by the part of the model; without any of them it is the denoiser's.
PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "base_model.model.": "unet",
}
PEFT_PREFIX = "base_model.model."
# peft names the layers of a CLIPTextModel so; those of a denoiser begin otherwise.
TEXT_ENCODER_LAYER = re.compile(r"(text_model\.|encoder\.layers\.|embeddings\.|final_layer_norm$)")
# What more a file's own settings may ask for, which a plain product is not.
BEYOND = ("use_rslora", "use_dora", "alpha_pattern")


@dataclass
class LowRank:
    """The change of one layer; alpha None means the rank, so a factor of 1."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | float | None = None
    names: list[str] = field(default_factory=list)

    def product(self, shape: torch.Size) -> Float[Tensor, "..."]:
        """(alpha / rank) up @ down in float32, in the shape of the layer's weight."""
        down, up = self.down.float().flatten(1), self.up.float().flatten(1)
        rank = len(down)
        factor = 1.0 if self.alpha is None else float(self.alpha) / rank
        return (factor * (up @ down)).reshape(shape)


def parse_lora(entry: str) -> tuple[Path, float]:
    """Path and scale of "file.safetensors" (scale 1) or "file.safetensors:0.7".

    Raises FileNotFoundError or ValueError where it names no .safetensors file.
    """
    path, scale = re.fullmatch(r"(.+?)(?::([+-]?(?:\d+\.?\d*|\.\d+)))?", entry, re.S).groups()
    if not Path(path).is_file():
        raise FileNotFoundError(f"lora = {entry!r}: there is no file {path}; name a LoRA file, or PATH:SCALE")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"lora = {entry!r}: a LoRA must be a .safetensors file; convert it first")
    return Path(path), 1.0 if scale is None else float(scale)


def apply_lora(unet: nn.Module, text_encoder: nn.Module, entries: Sequence[str]) -> None:
    """Add the changes of each file (see `parse_lora`) to the weights of denoiser and text encoder.

    Raises ValueError where a file is none, or was made for another model; the weights are then spoilt.
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
        except Exception as error:  # Metadata and tensors may have any type and shape.
            raise ValueError(f"lora: {path}: cannot be read: {type(error).__name__}: {error}") from error
        logger.info("lora: %s changes %d layers, scale %g", path, count, scale)


def _apply_file(path: Path, scale: float, layers: dict[str, dict[str, nn.Parameter]]) -> int:
    """Add the changes of one file; returns their number."""
    changes = read_lora(path)
    for (part, name), change in changes.items():
        # Attention's output projection is the first of a list, which some files do not name.
        weight = layers[part].get(name, layers[part].get(f"{name}_0"))
        _add(path, weight, change, scale)
    return len(changes)


@torch.no_grad()
def _add(path: Path, weight: nn.Parameter | None, change: LowRank, scale: float) -> None:
    name = change.names[0]
    if weight is None:
        raise ValueError(f"lora: {path}: {name} is no layer of this model; was it made for another one?")
    if change.down is None or change.up is None:
        raise ValueError(f"lora: {path}: {name} is half of a pair; the other half is missing")
    if min(change.down.dim(), change.up.dim()) < 2 or min(change.down.numel(), change.up.numel()) == 0:
        shapes = f"{tuple(change.up.shape)} times {tuple(change.down.shape)}"
        raise ValueError(f"lora: {path}: {name} is {shapes}, which is no low-rank product")
    if not (change.down.isfinite().all() and change.up.isfinite().all()):
        raise ValueError(f"lora: {path}: {name} contains NaN or infinity; get the file again")
    fits = change.down.shape[0] == change.up[0].numel()
    fits = fits and len(change.up) == len(weight) and change.down[0].numel() == weight[0].numel()
    if not fits:
        shapes = f"{tuple(change.up.shape)} times {tuple(change.down.shape)}"
        raise ValueError(
            f"lora: {path}: {name} is {shapes}, the layer {tuple(weight.shape)}; it was made for another "
            "model (1.x and 2.x differ)"
        )
    weight.copy_((weight.float() + scale * change.product(weight.shape)).to(weight.dtype))


def _layers(module: nn.Module) -> dict[str, nn.Parameter]:
    """Weights by the flat names of their layers: dots are underscores, without a leading text_model."""
    return {
        name.removesuffix(".weight").replace(".", "_").removeprefix("text_model_"): parameter
        for name, parameter in module.named_parameters()
        if name.endswith(".weight")
    }


def read_lora(path: Path) -> dict[tuple[str, str], LowRank]:
    """The changes in a file by (part, flat name of the layer).

    Raises ValueError where it cannot be read, or holds something else than low-rank products.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[tuple[str, str], LowRank] = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            alphas = _stated_alphas(path, names, file.metadata() or {})
            for name in names:
                part, layer, role = _address(path, name)
                change = found.setdefault((part, layer), LowRank(alpha=alphas.get(part)))
                setattr(change, role, file.get_tensor(name))
                change.names.append(name)
    except SafetensorError as error:
        raise ValueError(f"lora: {path}: cannot be read as safetensors: {error}") from error
    if not found:
        raise ValueError(f"lora: {path}: it holds no layers")
    return found


def _address(path: Path, name: str) -> tuple[str, str, str]:
    """Part, flat layer name and role of a tensor."""
    split = [(role, found) for role, ending in ROLES.items() if (found := ending.search(name))]
    if not split:
        raise ValueError(
            f"lora: {path}: {name} is no part of a low-rank product; plain LoRA files of kohya's trainer, "
            "diffusers or peft are read (no LoHa, LoKr or DoRA)"
        )
    role, ending = split[0]
    layer = name[: ending.start()]
    prefix = next((known for known in PREFIXES if layer.startswith(known)), "")
    part, layer = PREFIXES.get(prefix, "unet"), layer[len(prefix) :]
    if prefix == PEFT_PREFIX and TEXT_ENCODER_LAYER.match(layer):
        part = "text_encoder"
    flat = layer.replace(".processor.", ".").replace(".", "_").removeprefix("text_model_")
    if part == "text_encoder":
        # diffusers before 0.18 names the text encoder's projections as the denoiser's.
        flat = re.sub(r"(self_attn)_to_(q|k|v|out)$", r"\1_\2_proj", flat)
    return part, flat, role


def _stated_alphas(path: Path, names: list[str], metadata: dict[str, str]) -> dict[str, float]:
    """alpha by part, where it stands beside the tensors: in the metadata (diffusers) or a file (peft)."""
    settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    if any(name.startswith(PEFT_PREFIX) for name in names):
        beside = path.with_name("adapter_config.json")
        if not beside.is_file():
            raise ValueError(f"lora: {path}: peft's {beside.name} must lie beside it, for lora_alpha")
        own = json.loads(beside.read_text(encoding="utf-8"))
        settings = {f"{part}.{key}": value for part in ("unet", "text_encoder") for key, value in own.items()}
    for key, value in settings.items():
        if key.rpartition(".")[2] in BEYOND and value:
            raise ValueError(
                f"lora: {path}: {key} is {value!r}, which is more than a plain LoRA; not supported"
            )
    return {
        part: float(settings[f"{part}.lora_alpha"])
        for part in ("unet", "text_encoder")
        if f"{part}.lora_alpha" in settings
    }
