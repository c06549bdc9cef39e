"""Write a Stable Diffusion model in the complete diffusers layout, with toy sizes and random weights."""

import json

import torch


def write_tokenizer(folder):
    letters = [chr(c) for c in range(33, 127)]
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": 77,
                "bos_token": "<|startoftext|>",
                "eos_token": "<|endoftext|>",
                "unk_token": "<|endoftext|>",
                "pad_token": "!",
            }
        )
    )
    return len(tokens)


CAMERAS = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}


def write_model(folder, prediction_type="epsilon", views=1):
    """Write the model in diffusers layout. Return the folder.

    views: the number of views that the denoiser takes. With more than one view, the denoiser also takes the
    cameras.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    vocabulary = write_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=0,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
        **(CAMERAS if views > 1 else {}),
    )
    if views > 1:
        unet.register_to_config(views=views)
    unet.save_pretrained(folder / "unet")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.5,
    )
    vae.save_pretrained(folder / "vae")
    DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
    ).save_pretrained(folder / "scheduler")
    return folder


def write_control_net(folder, unet_folder, zero=False):
    """Write a ControlNet for the denoiser of a toy model. Return the folder.

    zero: keep the weights of the zero convolutions at zero, as in an untrained ControlNet.
    """
    from diffusers import ControlNetModel, UNet2DConditionModel

    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_pretrained(unet_folder)
    control_net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16))
    if not zero:
        fill_zero_convolutions(control_net)
    control_net.save_pretrained(folder)
    return folder


def fill_zero_convolutions(control_net):
    """Give the zero convolutions of a new ControlNet random weights, so that the network has an effect."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in control_net.named_parameters():
            if not parameter.any() and name.startswith("controlnet_"):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
