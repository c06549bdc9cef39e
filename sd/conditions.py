"""Additional inputs of a denoiser: a camera and a control image for each view."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class ViewConditions:
    """Conditions of N views. A condition that the prior does not use is None.

    world_to_clip: the camera matrices. control: the control images of a ControlNet, in [0, 1].
    control_weight: the factor on the residuals of the ControlNet. copies: the number of consecutive parts of
    the batch, one for each text of the guidance. All parts have the same latents, timesteps and conditions.
    """

    world_to_clip: Float[Tensor, "N 4 4"] | None = None
    control: Float[Tensor, "N 3 S S"] | None = None
    control_weight: Float[Tensor, ""] | None = None
    copies: int = 1

    def repeat(self, times: int) -> "ViewConditions":
        """Return the conditions of all views, repeated `times` times along the batch axis."""
        cameras, control = (
            None if tensor is None else torch.cat([tensor] * times)
            for tensor in (self.world_to_clip, self.control)
        )
        return ViewConditions(cameras, control, self.control_weight, self.copies * times)


NO_CONDITIONS = ViewConditions()
