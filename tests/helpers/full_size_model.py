"""Write a model with the sizes of Stable Diffusion 2.1-base and random weights, for tests on a GPU."""

import torch
from toy_model import CAMERAS, fill_zero_convolutions, write_tokenizer


def write_full_size_model(folder, views=1):
    """Write the model in diffusers layout and half precision. Return the folder.

    views: the number of views that the model denoises together. With more than one view, the model has
    MVDream's sizes, takes cameras and uses images of 256 pixels.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer")
    with torch.device("cuda"):
        unet = UNet2DConditionModel(
            sample_size=64 if views == 1 else 32,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=[5, 10, 20, 20],
            cross_attention_dim=1024,
            use_linear_projection=True,
            **(CAMERAS if views > 1 else {}),
        )
        if views > 1:
            unet.register_to_config(views=views)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=768,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=23,
                num_attention_heads=16,
                hidden_act="gelu",
                projection_dim=512,
            )
        )
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == (866 if views == 1 else 868)
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        part.half().save_pretrained(folder / name)
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    ).save_pretrained(folder / "scheduler")
    return folder


def write_full_size_control_net(folder, unet_folder):
    """Write a ControlNet with random weights for a full-size denoiser. Return the folder."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(unet_folder)
    control_net = ControlNetModel.from_unet(unet)
    fill_zero_convolutions(control_net)
    control_net.half().save_pretrained(folder)
    return folder
