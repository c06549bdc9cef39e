"""Load the denoiser of a public MVDream folder. The folder has diffusers layout, except for its unet.

The unet has the class name MultiViewUNetModel, the tensor names of the original layout without a prefix, and
the settings of the original program.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from sd.loading import ldm_format as layout
from sd.loading import single_file

CLASS = "MultiViewUNetModel"


def is_mvdream(settings: Mapping[str, object]) -> bool:
    """Return whether these settings of unet/config.json are those of an MVDream folder."""
    return settings.get("_class_name") == CLASS


def load_denoiser(file: Path, settings: Mapping[str, object], dtype: torch.dtype) -> nn.Module:
    """Return the denoiser as a `UNet2DConditionModel` with `views` in its config.

    file: the .safetensors file. settings: the content of unet/config.json.

    Raises:
        ValueError: if the tensors are not those of an MVDream denoiser.
    """
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    if settings.get("ip_dim"):
        raise ValueError("unet: ip_dim is set; a prior that takes an image besides the text is not supported")
    weights = {layout.UNET + name: value for name, value in load_file(file).items()}
    missing = [name for name in (*layout.NEEDED[:2], layout.CAMERA_EMBEDDING) if name not in weights]
    if missing:
        raise ValueError(f"unet: it lacks {missing[0].removeprefix(layout.UNET)}; it is no MVDream denoiser")
    config = layout.denoiser_config(weights)
    width = settings.get("num_head_channels", -1)
    if isinstance(width, int) and width > 0:
        config["attention_head_dim"] = [channels // width for channels in config["block_out_channels"]]
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=single_file.LATENT_OF_VIEWS, **config)
    single_file.fill(unet, layout.denoiser_weights(weights), dtype, "denoiser")
    unet.register_to_config(views=layout.VIEWS)
    return unet
