"""Inputs of a denoiser for each view besides latent, time and text: the camera and a control image."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class ViewConditions:
    """Conditions of N views; None for a condition that the prior does not take.

    world_to_clip: the cameras. control: the control image of a ControlNet, in [0, 1]. control_weight: the
    factor on the ControlNet's residuals.
    """

    world_to_clip: Float[Tensor, "N 4 4"] | None = None
    control: Float[Tensor, "N 3 S S"] | None = None
    control_weight: Float[Tensor, ""] | None = None

    def repeat(self, times: int) -> "ViewConditions":
        """The conditions of all views, `times` times in a row."""
        cameras, control = (
            None if tensor is None else torch.cat([tensor] * times)
            for tensor in (self.world_to_clip, self.control)
        )
        return ViewConditions(cameras, control, self.control_weight)


NO_CONDITIONS = ViewConditions()
