"""Multi-view priors, which denoise several views of one object together (MVDream, arXiv 2308.16512).

The denoiser is a `UNet2DConditionModel` whose self-attention runs over the tokens of all V views of an
object. Cross-attention, convolutions and normalisations process one view at a time. The camera of a view is a
4×4 matrix. A small network (linear, SiLU, linear) maps the matrix to a vector, which is added to the time
embedding. The views of an object are consecutive in a batch.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

# The number of inputs of the camera embedding. The input is a 4×4 matrix, flattened by rows.
CAMERA_NUMBERS = 16
MOST_VIEWS = 16


def stated_views(settings: Mapping[str, object]) -> int:
    """Return the number of views that a denoiser with these settings (unet/config.json) denoises together.

    Raises:
        ValueError: if "views" or the class embedding has a value that is not supported.
    """
    views, kind = settings.get("views", 1), settings.get("class_embed_type")
    if type(views) is not int or not 1 <= views <= MOST_VIEWS:
        raise ValueError(f"unet: views = {views!r}; allowed is an integer from 1 to {MOST_VIEWS}")
    width = settings.get("projection_class_embeddings_input_dim")
    if kind is None and settings.get("num_class_embeds") is None:
        if views > 1:
            raise ValueError(
                f"unet: views = {views} needs class_embed_type 'projection' with "
                f"projection_class_embeddings_input_dim {CAMERA_NUMBERS}, which reads the cameras"
            )
        return views
    if kind != "projection" or width != CAMERA_NUMBERS:
        raise ValueError(
            f"unet: class_embed_type = {kind!r} with projection_class_embeddings_input_dim = {width!r} is "
            f"not supported; a prior that takes cameras has 'projection' and {CAMERA_NUMBERS}"
        )
    return views


def takes_cameras(settings: Mapping[str, object]) -> bool:
    """Return whether a denoiser with these settings has a camera embedding."""
    return settings.get("class_embed_type") == "projection"


def camera_matrices(world_to_clip: Float[Tensor, "N 4 4"]) -> Float[Tensor, "N 16"]:
    """Return MVDream's camera-to-world matrices, flattened by rows.

    The columns are the camera's right, up and backward axes and its position on the unit sphere. The distance
    and the shift of the camera are ignored, so the position equals the backward axis.

    world_to_clip: as in `render.camera.Cameras`. The rows 0, 1 and 3 of this matrix are multiples of the
    camera's right, down and forward axes. In MVDream's frame, x points to the front and z points up. The
    point (x, y, z) of this program is (z, x, y) in MVDream's frame.
    """
    right, down, forward = (nn.functional.normalize(world_to_clip[:, row, :3], dim=-1) for row in (0, 1, 3))
    columns = torch.stack([right, -down, -forward, -forward], dim=-1).roll(1, dims=1)
    last = torch.zeros_like(columns[:, :1])
    last[..., 3] = 1
    return torch.cat([columns, last], dim=1).flatten(1)


class JointAttention:
    """An attention processor for diffusers, with which self-attention runs over the tokens of `views`
    consecutive samples.
    """

    def __init__(self, views: int, processor: object):
        """processor: diffusers' attention processor, which is applied to the joined tokens."""
        self.views, self.processor = views, processor

    def __call__(
        self, attention: nn.Module, hidden_states: Float[Tensor, "N L C"], *others: object, **named: object
    ) -> Float[Tensor, "N L C"]:
        """others, named: arguments of diffusers' processors, all None for self-attention without a mask."""
        assert all(value is None for value in (*others, *named.values())), (others, named)
        joined = hidden_states.unflatten(0, (-1, self.views)).flatten(1, 2)
        mixed = self.processor(attention, joined)
        return mixed.unflatten(1, (self.views, -1)).flatten(0, 1)


def join_views(unet: nn.Module, views: int) -> None:
    """Change a `UNet2DConditionModel` in place so that self-attention runs over `views` consecutive
    samples.
    """
    from diffusers.models.attention import BasicTransformerBlock

    if views == 1:
        return
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock):
            block.attn1.set_processor(JointAttention(views, block.attn1.processor))
