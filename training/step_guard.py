"""Skip optimizer steps with NaN or infinite gradients. Too many consecutive skipped steps end the training.

The check and the skip run on the device, so the host does not wait for a GPU. The host reads the result of a
step during the next step.
"""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from render.async_copy import AsyncScalars
from training.distributed import optimized_parameters

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 20


class StepGuard:
    """Perform optimizer steps only if all gradients are finite.

    skipped: number of skipped steps that the host has read so far. A step is bad if it was skipped, or if all
    values of its latent gradient were NaN or infinite and therefore replaced by 0. After MAX_BAD_STEPS
    consecutive bad steps, ValueError is raised.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._replaced = False
        self._bad_in_a_row = 0
        self._pending: AsyncScalars | None = None
        self._image_gradients: list[Tensor] = []

    def watch(self, image: Tensor) -> None:
        """Register a check of the images' gradient.

        The check runs when the backward pass computes this gradient.
        """
        if image.requires_grad:
            flags = self._image_gradients
            image.register_hook(lambda grad: flags.append(grad.isfinite().all()))

    def step(self, *optimizers: torch.optim.Optimizer) -> None:
        """Step all optimizers. If any gradient is not finite, keep weights and optimizer states unchanged."""
        parameters = [parameter for optimizer in optimizers for parameter in optimized_parameters(optimizer)]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        # Use the maximum norm: it propagates NaN, and unlike the Euclidean norm it does not overflow for
        # large gradients.
        skip = get_total_norm(gradients, math.inf).isfinite().logical_not().float()
        finite = torch.stack(self._image_gradients).all() if self._image_gradients else torch.ones_like(skip)
        self._pending = AsyncScalars({"skip": skip, "image": 1 - finite.float()})
        self._image_gradients = []
        for optimizer in optimizers:
            if optimizer.defaults.get("fused"):
                # A fused optimizer reads this flag on the device and skips the step if it is 1.
                optimizer.found_inf = skip
                optimizer.step()
            elif not skip.item():
                optimizer.step()

    def flags(self) -> list[float]:
        """Return two flags (0 or 1) of the previous step on this rank.

        The first is 1 if the step was skipped. The second is 1 if the gradient of its images was not finite.
        """
        if self._pending is None:
            return [0.0, 0.0]
        values, self._pending = self._pending.read(), None
        return [values["skip"], values["image"]]

    def decide(self, step: int, flags: Sequence[float], replaced: float = 0.0, values: int = 1) -> None:
        """Count skipped and bad steps, and log them.

        All arguments are equal on every rank, so all ranks raise the same error. flags: the flags of the
        previous step, summed over ranks. values: number of values in the latent gradient of this step.
        replaced: number of these values that were replaced by 0.

        Raises:
            ValueError: after MAX_BAD_STEPS consecutive bad steps. The message contains the cause.
        """
        skip, image = (flag > 0 for flag in flags)
        self.skipped += skip
        if replaced and not self._replaced:
            logger.warning(
                "step %d: %d of %d values of the latent gradient are NaN or infinite and were replaced by 0; "
                "log.jsonl counts them as replaced_values",
                step,
                replaced,
                values,
            )
        self._replaced = bool(replaced)
        if not (skip or replaced >= values):
            self._bad_in_a_row = 0
            return
        self._bad_in_a_row += 1
        if not skip:
            cause = "the prior's noise prediction is not finite"
        elif image:
            cause = "the gradient that the prior returns for the images is not finite"
        else:
            cause = "the gradient of the weights is not finite, while that of the images is finite"
        if self._bad_in_a_row == 1 and skip:
            logger.warning("step %d: %s; the optimizer step was skipped", step - 1, cause)
        if self._bad_in_a_row == MAX_BAD_STEPS:
            raise ValueError(
                f"step {step}: {cause} in {MAX_BAD_STEPS} steps in a row; the run ends and the last "
                "checkpoint is kept; try a lower guidance_weight or learning_rate, or another sd_model"
            )
