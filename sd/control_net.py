"""ControlNet: residuals for the denoiser that are computed from an image of the geometry (arXiv 2302.05543).

The network is diffusers' `ControlNetModel`. Its inputs are x_t, t, the text and a control image. Its
residuals are added to the outputs of the denoiser's down blocks and middle block, for every text of the
guidance.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from sd.kernels.fused_denoiser import call_denoiser
from sd.kernels.fused_transformer import repeated

Residuals = tuple[list[Tensor], Tensor]


def residuals_of(
    control_net: nn.Module,
    noisy: Float[Tensor, "B C h w"],
    timesteps: Int[Tensor, " B"],
    text: Float[Tensor, "N L D"],
    conditions: Sequence[Tensor],
) -> Residuals:
    """Return the residuals for the down blocks and the middle block, multiplied by the ControlNet's weight.

    conditions: the control image [B, 3, S, S] in [0, 1] and the weight [], followed by the camera [B, 16] if
    the prior takes cameras. The number of texts N is a multiple of the number of views B. The views are
    repeated N / B times.
    """
    control, weight, *camera = conditions
    down, middle = control_net(
        repeated(noisy, len(text)),
        repeated(timesteps, len(text)),
        encoder_hidden_states=text,
        controlnet_cond=repeated(control, len(text)),
        conditioning_scale=weight,
        class_labels=repeated(camera[0], len(text)) if camera else None,
        return_dict=False,
    )
    return down, middle


def controlled_noise_of(
    denoiser: nn.Module,
    control_net: nn.Module,
    noisy: Tensor,
    timesteps: Tensor,
    text: Tensor,
    *conditions: Tensor,
) -> Tensor:
    """Add the residuals of a ControlNet in a denoiser, and return the output of the denoiser.

    denoiser, noisy, timesteps, text: see `call_denoiser`. conditions: see `residuals_of`.
    """
    residuals = residuals_of(control_net, noisy, timesteps, text, conditions)
    camera = conditions[2] if len(conditions) > 2 else None
    return call_denoiser(denoiser, noisy, timesteps, text, camera, residuals)


def check_control_net(control_net, unet, pixels_per_latent: int) -> None:
    """Raise ValueError if a ControlNet does not fit the denoiser.

    control_net, unet: the configs of both networks. pixels_per_latent: image size divided by latent size.
    """
    same = (
        "in_channels",
        "cross_attention_dim",
        "block_out_channels",
        "layers_per_block",
        "class_embed_type",
    )
    for key in same:
        found, needed = (_plain(getattr(config, key)) for config in (control_net, unet))
        if found != needed:
            raise ValueError(
                f"control_model: {key} = {found}, and sd_model has {needed}; use a ControlNet that was "
                "trained for this model (those for 1.x and 2.x differ)"
            )
    if control_net.conditioning_channels != 3:
        raise ValueError(
            f"control_model: conditioning_channels = {control_net.conditioning_channels}; a ControlNet for "
            "images of 3 channels is needed"
        )
    factor = 2 ** (len(control_net.conditioning_embedding_out_channels) - 1)
    if factor != pixels_per_latent:
        raise ValueError(
            f"control_model: it reduces the control image by {factor}, and sd_model has {pixels_per_latent} "
            "pixels per latent; use a ControlNet that was trained for this model"
        )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, list | tuple) else value
