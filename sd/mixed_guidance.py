"""The weighted sum of the losses of two priors.

A multi-view prior constrains the shape of an object, and a single-view prior adds detail. Each prior has its
own latent size, prompts and noise.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sd.guidance import Guidance, SDSSample
from sd.schedule import AnnealedNumber, Phase, annealed_number

Samples = tuple[SDSSample, ...]


class MixedGuidance(nn.Module):
    """Several `Guidance` modules, each with a weight. The interface is the same as that of `Guidance`.

    A sample is a tuple with one sample per prior. VSD is not supported, so `lora` and `lora_optimizer` are
    None.
    """

    lora = lora_optimizer = None

    def __init__(self, parts: Sequence[Guidance], weights: Sequence[AnnealedNumber]):
        """parts: one module for each prior. Only the first module can have a ControlNet.

        Raises:
            ValueError: if two multi-view priors take different numbers of views.
        """
        super().__init__()
        self.parts, self.weights = nn.ModuleList(parts), tuple(weights)
        grouped = {part.views for part in parts if part.views > 1}
        if len(grouped) > 1:
            numbers = " and ".join(map(str, sorted(grouped)))
            raise ValueError(
                f"second_sd_model: the two priors take groups of {numbers} views; use equal numbers"
            )
        self.views = max([1, *grouped])
        self.control, self.device = parts[0].control, parts[0].device

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return []

    def forward(
        self, image: Float[Tensor, "B H W C"], sample: Samples, phase: Phase
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the weighted loss and the statistics of `Guidance.forward`.

        replaced_values is the sum over the priors. gradient_norm and gradient_norm_2 are the unweighted
        gradient norms of the first and the second prior.
        """
        total, stats = 0, {"replaced_values": 0}
        for number, (part, weight, own) in enumerate(zip(self.parts, self.weights, sample, strict=True), 1):
            loss, found = part(image, own, phase)
            total = total + annealed_number(weight, phase.annealing) * loss
            stats["replaced_values"] = stats["replaced_values"] + found["replaced_values"]
            stats["gradient_norm" if number == 1 else f"gradient_norm_{number}"] = found["gradient_norm"]
        return total, {"loss": total.detach(), **stats}

    def latent_values(self, views: int) -> int:
        """Return the number of values in the latents of `views` images, summed over all priors."""
        return sum(part.latent_values(views) for part in self.parts)

    def sample(
        self,
        view_index: Int[Tensor, " B"],
        phase: Phase,
        generator: torch.Generator,
        world_to_clip: Float[Tensor, "B 4 4"] | None = None,
    ) -> Samples:
        """Draw the samples of the priors one after another from one generator."""
        return tuple(part.sample(view_index, phase, generator, world_to_clip) for part in self.parts)

    def with_surface_noise(self, sample: Samples, *scene: object) -> Samples:
        """See `Guidance.with_surface_noise`."""
        return tuple(
            part.with_surface_noise(own, *scene) for part, own in zip(self.parts, sample, strict=True)
        )

    def with_control(self, sample: Samples, image: Float[Tensor, "B H W 3"]) -> Samples:
        """Return the samples. Only the sample of the first prior gets the control image."""
        return (self.parts[0].with_control(sample[0], image), *sample[1:])
