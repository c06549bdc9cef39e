"""Write Stable Diffusion 1.x, 2.x and MVDream as single files, based on their published architecture.

Names and shapes are generated from the settings of the original program (model_channels, channel_mult, …), in
the order in which that program builds its modules. The files depend neither on the code under test nor on
diffusers.
"""

import torch

FULL, SMALL = (1, 2, 4, 4), (1, 1, 2, 2)
SIZES = {
    "1.5": dict(width=320, multiples=FULL, context=768, vae=128, layers=12, words=49408, open_clip=False),
    "2.1": dict(width=320, multiples=FULL, context=1024, vae=128, layers=24, words=49408, open_clip=True),
    "small 1.5": dict(width=32, multiples=SMALL, context=64, vae=32, layers=2, words=190, open_clip=False),
    "mvdream": dict(width=320, multiples=FULL, context=1024, vae=128, layers=24, words=49408, open_clip=True),
    "small mvdream": dict(width=64, multiples=SMALL, context=64, vae=32, layers=3, words=190, open_clip=True),
    "small 2.1": dict(width=64, multiples=SMALL, context=64, vae=32, layers=3, words=190, open_clip=True),
}


def affine(name, out, *rest):
    """Return the tensor shapes of a layer with a bias. rest: the remaining dimensions of its weight."""
    return {f"{name}.weight": (out, *rest), f"{name}.bias": (out,)}


def residual(name, before, after, time):
    shapes = affine(f"{name}.in_layers.0", before) | affine(f"{name}.in_layers.2", after, before, 3, 3)
    shapes |= affine(f"{name}.emb_layers.1", after, time)
    shapes |= affine(f"{name}.out_layers.0", after) | affine(f"{name}.out_layers.3", after, after, 3, 3)
    return shapes | (affine(f"{name}.skip_connection", after, before, 1, 1) if before != after else {})


def transformer(name, width, context, linear):
    pixel = () if linear else (1, 1)
    shapes = affine(f"{name}.norm", width) | affine(f"{name}.proj_in", width, width, *pixel)
    block = f"{name}.transformer_blocks.0"
    for attention, reads in (("attn1", width), ("attn2", context)):
        shapes[f"{block}.{attention}.to_q.weight"] = (width, width)
        shapes[f"{block}.{attention}.to_k.weight"] = (width, reads)
        shapes[f"{block}.{attention}.to_v.weight"] = (width, reads)
        shapes |= affine(f"{block}.{attention}.to_out.0", width, width)
    shapes |= affine(f"{block}.ff.net.0.proj", 8 * width, width)
    shapes |= affine(f"{block}.ff.net.2", width, 4 * width)
    for norm in ("norm1", "norm2", "norm3"):
        shapes |= affine(f"{block}.{norm}", width)
    return shapes | affine(f"{name}.proj_out", width, width, *pixel)


def denoiser(width, multiples, context, linear, channels=4):
    time = 4 * width
    shapes = affine("time_embed.0", time, width) | affine("time_embed.2", time, time)
    shapes |= affine("input_blocks.0.0", width, channels, 3, 3)
    now, stack, block = width, [width], 1
    for level, multiple in enumerate(multiples):
        for _ in range(2):
            shapes |= residual(f"input_blocks.{block}.0", now, multiple * width, time)
            now = multiple * width
            if level < 3:
                shapes |= transformer(f"input_blocks.{block}.1", now, context, linear)
            stack.append(now)
            block += 1
        if level < 3:
            shapes |= affine(f"input_blocks.{block}.0.op", now, now, 3, 3)
            stack.append(now)
            block += 1
    shapes |= residual("middle_block.0", now, now, time) | transformer("middle_block.1", now, context, linear)
    shapes |= residual("middle_block.2", now, now, time)
    block = 0
    for level, multiple in reversed(list(enumerate(multiples))):
        for repeat in range(3):
            shapes |= residual(f"output_blocks.{block}.0", now + stack.pop(), multiple * width, time)
            now = multiple * width
            if level < 3:
                shapes |= transformer(f"output_blocks.{block}.1", now, context, linear)
            if level > 0 and repeat == 2:
                place = 2 if level < 3 else 1
                shapes |= affine(f"output_blocks.{block}.{place}.conv", now, now, 3, 3)
            block += 1
    return shapes | affine("out.0", now) | affine("out.2", channels, now, 3, 3)


def picture_residual(name, before, after):
    shapes = affine(f"{name}.norm1", before) | affine(f"{name}.conv1", after, before, 3, 3)
    shapes |= affine(f"{name}.norm2", after) | affine(f"{name}.conv2", after, after, 3, 3)
    return shapes | (affine(f"{name}.nin_shortcut", after, before, 1, 1) if before != after else {})


def picture_middle(name, width):
    shapes = picture_residual(f"{name}.block_1", width, width) | affine(f"{name}.attn_1.norm", width)
    for layer in ("q", "k", "v", "proj_out"):
        shapes |= affine(f"{name}.attn_1.{layer}", width, width, 1, 1)
    return shapes | picture_residual(f"{name}.block_2", width, width)


def autoencoder(width, multiples):
    shapes = affine("encoder.conv_in", width, 3, 3, 3)
    now = width
    for level, multiple in enumerate(multiples):
        for block in range(2):
            shapes |= picture_residual(f"encoder.down.{level}.block.{block}", now, multiple * width)
            now = multiple * width
        if level < 3:
            shapes |= affine(f"encoder.down.{level}.downsample.conv", now, now, 3, 3)
    shapes |= picture_middle("encoder.mid", now) | affine("encoder.norm_out", now)
    shapes |= affine("encoder.conv_out", 8, now, 3, 3)
    shapes |= affine("decoder.conv_in", now, 4, 3, 3) | picture_middle("decoder.mid", now)
    for level, multiple in reversed(list(enumerate(multiples))):
        for block in range(3):
            shapes |= picture_residual(f"decoder.up.{level}.block.{block}", now, multiple * width)
            now = multiple * width
        if level > 0:
            shapes |= affine(f"decoder.up.{level}.upsample.conv", now, now, 3, 3)
    shapes |= affine("decoder.norm_out", now) | affine("decoder.conv_out", 3, now, 3, 3)
    return shapes | affine("quant_conv", 8, 8, 1, 1) | affine("post_quant_conv", 4, 4, 1, 1)


def clip(width, layers, words):
    """Return the tensor shapes of CLIP's text encoder, with the names that transformers used for 1.x."""
    shapes = {"text_model.embeddings.position_ids": (1, 77)}
    shapes["text_model.embeddings.token_embedding.weight"] = (words, width)
    shapes["text_model.embeddings.position_embedding.weight"] = (77, width)
    for layer in range(layers):
        own = f"text_model.encoder.layers.{layer}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= affine(f"{own}.self_attn.{projection}", width, width)
        shapes |= affine(f"{own}.layer_norm1", width) | affine(f"{own}.mlp.fc1", 4 * width, width)
        shapes |= affine(f"{own}.mlp.fc2", width, 4 * width) | affine(f"{own}.layer_norm2", width)
    return shapes | affine("text_model.final_layer_norm", width)


def open_clip(width, layers, words):
    shapes = {"positional_embedding": (77, width), "text_projection": (width, width), "logit_scale": ()}
    for layer in range(layers):
        own = f"transformer.resblocks.{layer}"
        shapes |= affine(f"{own}.ln_1", width) | affine(f"{own}.ln_2", width)
        shapes |= {f"{own}.attn.in_proj_weight": (3 * width, width), f"{own}.attn.in_proj_bias": (3 * width,)}
        shapes |= affine(f"{own}.attn.out_proj", width, width)
        shapes |= affine(f"{own}.mlp.c_fc", 4 * width, width) | affine(f"{own}.mlp.c_proj", width, 4 * width)
    return shapes | {"token_embedding.weight": (words, width)} | affine("ln_final", width)


def original_shapes(version):
    """Return {name: shape} of all tensors of a checkpoint."""
    size = SIZES[version]
    text = open_clip if size["open_clip"] else clip
    prefix = "cond_stage_model.model." if size["open_clip"] else "cond_stage_model.transformer."
    parts = {
        "model.diffusion_model.": denoiser(
            size["width"], size["multiples"], size["context"], size["open_clip"]
        ),
        "first_stage_model.": autoencoder(size["vae"], size["multiples"]),
        prefix: text(size["context"], size["layers"], size["words"]),
        "": {"alphas_cumprod": (1000,), "betas": (1000,)},
    }
    if "mvdream" in version:
        time = 4 * size["width"]
        camera = affine("camera_embed.0", time, 16) | affine("camera_embed.2", time, time)
        parts["model.diffusion_model."] |= camera
    return {start + name: shape for start, part in parts.items() for name, shape in part.items()}


def random_weights(version):
    """Return {name: random tensor}. The scale is such that activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, shape in original_shapes(version).items():
        if name.endswith("position_ids"):
            weights[name] = torch.arange(77)[None]
            continue
        fan = torch.Size(shape[1:]).numel() if len(shape) > 1 else 100
        weights[name] = torch.randn(shape, generator=generator) / fan**0.5
    return weights
