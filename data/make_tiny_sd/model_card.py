"""The README of the embedded prior's folder."""

from data.make_tiny_sd.captions import DROPPED_SHARE, VIEW_SHARE, readable_name
from data.make_tiny_sd.renders import DataConfig
from data.make_tiny_sd.samples import GUIDANCE, STEPS
from dataset.procedural.materials import MATERIALS

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# tiny-sd: a Stable Diffusion of {millions:.1f} M parameters that knows {count} categories of object

A prior for score distillation on a CPU, in the layout of Stable Diffusion (`UNet2DConditionModel`,
`AutoencoderKL`, `CLIPTextModel`, `CLIPTokenizer`, DDIM; latents {latent}×{latent}×4, images
{image}×{image}, the noise is predicted). It is no general image model. It knows: {categories}.

![samples](samples.jpg)

A row a category, in the order above; by pairs of columns the caption "a …", "a …, front view", "side view",
"back view". Blocks from left to right: rotated normals (the latent itself), normals, shaded. DDIM,
{steps} steps, guidance {guidance:g}.

## Data and licence
Apache-2.0, weights included. Trained from nothing on renders of this project's own procedural objects
(`dataset/procedural`), no other image, text or weight: {instances} random instances a category × {views} views,
cameras at radius 3, fovy {fovy[0]:g} to {fovy[1]:g}°, elevation {elevation[0]:g} to {elevation[1]:g}°,
shifted by up to {jitter:g}; shaded under `data/irrmaps`' default map × {env_scale:g} (CC0, see
data/README.md). A third of each batch each: (normal, mask) at {latent}², every view's normals turned at
random, as the latent itself; normal images through the VAE (background 0); shaded renders through the
VAE (sRGB, background black = −1). {own_share:.0%} of the views show the category's own colours, the rest one of
{materials}. Captions: "a pineapple", "a photo of a golden
pineapple", "a pineapple made of gold" and so on, with ", front view", ", side view" or ", back view" in
{view_share:.0%}; {dropped:.0%} are empty or one of the method's negative prompts.

Never shown together, so that what comes of them is composed: {held_out}.

## Training
`python3 -m data.make_tiny_sd.train --out data/tiny-sd` on {device}: {total:.1f} minutes in all, {steps_done}
steps of batch {batch} for the denoiser{start} (loss at the end: {losses}). Parameters: denoiser {unet:.2f} M,
VAE {vae:.2f} M, text encoder {text:.2f} M; stored in half precision. Scaling factor {scaling:.5f}. Made with
torch {torch_version}.

## Limits
Other objects and styles named in a prompt are unknown words: they move the result at random.
Objects stand upright, whole in the picture, front to +z, under one light. The smallest details are a
latent pixel, a thirtieth of the picture.
One prompt serves all three domains, so a sample that starts as noise may end in another domain than its block
is for: the pale, the inverted and the black cells above. Distillation starts from an image, which tells.
"""


def model_card(data: DataConfig, figures: dict) -> str:
    """CARD with all values inserted. figures: the values that are known only after training."""
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
        view_share=VIEW_SHARE,
        dropped=DROPPED_SHARE,
        **figures,
    )
