"""The denoiser φ that VSD trains (arXiv 2305.16213). It is the prior with a LoRA and a camera embedding.

φ is trained to predict the noise in noisy renders. Its loss is ‖e_φ(x_t; t, text, camera) − ε‖². The score
uses the same x_t, so one evaluation of φ serves for the loss and the score. Before the first training step,
the LoRA and the camera embedding have no effect, so φ predicts the same noise as the prior with the prompt.
"""

import copy
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float, Int
from torch import Tensor, nn

from sd.control_net import Residuals
from sd.multi_view import CAMERA_NUMBERS

LoraRank = Annotated[int, Ge(1)]
LearningRate = Annotated[float, Gt(0)]

# The names of the layers that get a LoRA. They are the projections of self- and cross-attention.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class CameraEmbedding(nn.Module):
    """A network (linear, SiLU, linear) from a camera matrix to a vector that is added to the time embedding.

    The last layer is initialised with 0, so the untrained embedding has no effect.
    """

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Linear(CAMERA_NUMBERS, width)
        self.last = nn.Linear(width, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, camera: Float[Tensor, "B 16"]) -> Float[Tensor, "B D"]:
        return self.last(nn.functional.silu(self.first(camera)))


class AddedEmbedding(nn.Module):
    """The sum of a prior's frozen camera embedding and a trainable camera embedding.

    The input [N, 32] consists of 16 numbers for the frozen embedding and 16 for the trainable embedding.
    """

    def __init__(self, own: nn.Module, added: CameraEmbedding):
        super().__init__()
        self.own, self.added = own, added

    def forward(self, cameras: Float[Tensor, "B C2"]) -> Float[Tensor, "B D"]:
        first, second = cameras.split(CAMERA_NUMBERS, dim=1)
        return self.own(first.to(self.own.linear_1.weight.dtype)).float() + self.added(second)


class LoraDenoiser(nn.Module):
    """The denoiser e_φ. It is a `UNet2DConditionModel` with frozen, shared weights, a trainable LoRA and a
    trainable camera embedding.
    """

    def __init__(self, unet: nn.Module, rank: int, seed: int):
        """unet: a result of `share_weights`; it is changed in place. seed: the seed of the initial LoRA and
        embedding.
        """
        super().__init__()
        if torch.distributed.is_available():
            # peft uses this module without importing it, because an ordinary import of transformers does so.
            from torch.distributed import tensor  # noqa: F401
        from peft import LoraConfig, inject_adapter_in_model

        device = next(unet.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # The LoRA is initialised on the CPU and then moved to the device. The initial values are
            # therefore the same on every device.
            adapter = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS)
            unet = inject_adapter_in_model(adapter, unet.requires_grad_(False))
            for name, parameter in unet.named_parameters():
                if "lora_A" in name:
                    start = torch.empty(parameter.shape)
                    nn.init.kaiming_uniform_(start, a=5**0.5)
                    parameter.data = start.to(device)
                elif "lora_B" in name:
                    parameter.data = parameter.data.float()
            # The camera embedding is stored as class_embedding, because diffusers adds the output of
            # class_embedding to the time embedding.
            camera = CameraEmbedding(unet.time_embedding.linear_2.out_features).to(device)
            own = unet.class_embedding
            unet.class_embedding = camera if own is None else AddedEmbedding(own, camera)
        self.unet = unet

    def forward(
        self,
        noisy: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
        text: Float[Tensor, "B L D"],
        camera: Float[Tensor, "B K"],
        residuals: Residuals | None = None,
    ) -> Float[Tensor, "B C h w"]:
        """camera: 16 numbers, or 32 for a prior that takes cameras (see `AddedEmbedding`). residuals: the
        residuals of a ControlNet for the down blocks and the middle block.
        """
        down, middle = residuals or (None, None)
        return self.unet(
            noisy,
            timesteps,
            encoder_hidden_states=text,
            class_labels=camera,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]

    def trained(self) -> dict[str, nn.Parameter]:
        """Return a dict from parameter names to the trainable parameters."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def share_weights(unet: nn.Module) -> nn.Module:
    """Return a copy of a network that shares the original's weight tensors, so the copy needs no additional
    memory for weights.

    Call this function before the blocks of the original are fused, because fused blocks have no gradients for
    a LoRA.
    """
    shared = {id(tensor): tensor for tensor in [*unet.parameters(), *unet.buffers()]}
    return copy.deepcopy(unet, shared)


def camera_numbers(world_to_clip: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 16"]:
    """Return the input of the camera embedding: world_to_clip flattened by rows."""
    return world_to_clip.flatten(1)


def azimuths(world_to_clip: Float[Tensor, "B 4 4"]) -> Float[Tensor, " B"]:
    """Return the cameras' azimuths in radians.

    The first row of world_to_clip is the camera's right axis (cos, 0, sin) times the focal length.
    """
    return torch.atan2(world_to_clip[:, 0, 2], world_to_clip[:, 0, 0])
