"""The README of the embedded prior's folder."""

from data.make_tiny_sd.captions import DROPPED_SHARE, readable_name
from data.make_tiny_sd.renders import DataConfig
from data.make_tiny_sd.samples import GUIDANCE, STEPS
from dataset.procedural.materials import MATERIALS

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# tiny-sd: a Stable Diffusion of {millions:.1f} M parameters for {count} object categories

A prior for score distillation on a CPU, in the layout of Stable Diffusion (`UNet2DConditionModel`,
`AutoencoderKL`, `CLIPTextModel`, `CLIPTokenizer`, DDIM; latents {latent}×{latent}×4, images {image}×{image},
noise prediction). It is not a general image model. Categories: {categories}.

![samples](samples.jpg)

One row per category, in the order above. Pairs of columns have the captions "a …", "a …, front view", "side
view" and "back view". Blocks from left to right: rotated normals (the latent itself), normals, shaded images.
DDIM, {steps} steps, guidance {guidance:g}.

## Data and licence
Apache-2.0, weights included. Trained from scratch on renders of this project's own procedural objects
(`dataset/procedural`), without other images, text or weights: {instances} random instances per category ×
{views} views. Cameras: radius 3, fovy {fovy[0]:g} to {fovy[1]:g}°, elevation {elevation[0]:g} to
{elevation[1]:g}°, shifted by up to {jitter:g}. Shaded under the default map of `data/irrmaps` × {env_scale:g}
(CC0, see data/README.md). Each batch has a third of each domain: (normal, mask) at {latent}² with random
rotations of the normals, as the latent itself; normal images through the VAE (background 0); shaded renders
through the VAE (sRGB, black background = −1). {own_share:.0%} of the views have the category's own colours,
the others one of {materials}. Captions: "a pineapple", "a photo of a golden pineapple", "a pineapple made
of gold" and so on, with ", front view", ", side view" or ", back view" in {view_share:.0%}. {dropped:.0%}
are empty or a negative prompt.{joint}

Pairs that are held out from training, to test composition: {held_out}.

## Training
`python3 -m data.make_tiny_sd.train --out data/tiny-sd` on {device}: {total:.1f} minutes in total,
{steps_done} steps of batch {batch} for the denoiser{start} (final loss: {losses}). Parameters: denoiser
{unet:.2f} M, VAE {vae:.2f} M, text encoder {text:.2f} M, stored in half precision. Scaling factor
{scaling:.5f}. Trained with torch {torch_version}.

## Limits
Other objects and styles are unknown words and change the result randomly. Objects stand upright, whole in the
image, with the front to +z, under one light. The smallest details have the size of a latent pixel, 1/30 of
the image. One prompt is used for all three domains, so a sample from pure noise may end in another domain
than its block: these are the pale, inverted and black cells above. Distillation starts from an image, which
determines the domain.
"""


def model_card(data: DataConfig, figures: dict) -> str:
    """Return CARD with all values inserted. figures: the values that are known only after training."""
    return CARD.format(
        count=len(data.categories),
        categories=", ".join(category.replace("_", " ") for category in data.categories),
        steps=STEPS,
        guidance=GUIDANCE,
        views=data.views,
        fovy=data.cameras.fovy_range,
        elevation=data.cameras.elevation_range,
        jitter=data.cameras.camera_random_jitter,
        env_scale=data.environment.env_scale,
        own_share=data.own_share,
        materials=", ".join(MATERIALS),
        held_out=", ".join(
            sorted(f"{material} {readable_name(category)}" for category, material in data.held_out)
        ),
        dropped=DROPPED_SHARE,
        **figures,
    )
