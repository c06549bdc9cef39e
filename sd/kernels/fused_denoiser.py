"""The forward pass of diffusers' denoiser with fused blocks and without repeated work. It is not
differentiable.

The texts of classifier-free guidance share the latents, the timesteps and the cameras. All layers before the
first cross-attention are computed once for all texts. One matrix product computes the projected time
embeddings of all residual blocks, and another the keys and values of all cross-attentions.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sd.kernels.fused_blocks import (
    FrozenConv2d,
    FusedResnetBlock,
    fuse_output_norm,
    is_supported_convolution,
    is_supported_resnet_block,
)
from sd.kernels.fused_transformer import (
    FusedGEGLU,
    FusedTransformer,
    frozen,
    is_supported_transformer,
    repeated,
)
from sd.kernels.reference import Kernels


def fuse_denoiser(unet: nn.Module, kernels: Kernels) -> nn.Module:
    """Replace the supported blocks of a `UNet2DConditionModel` in place, and return the network to call.

    This network is a `FusedDenoiser`, or `unet` if the structure of `unet` is not supported.
    """
    fuse_control_net_blocks(unet, kernels)
    fuse_output_norm(unet, kernels)
    return FusedDenoiser(unet) if is_supported_denoiser(unet) else unet


def fuse_control_net_blocks(network: nn.Module, kernels: Kernels) -> None:
    """Replace the supported blocks of a `ControlNetModel` or denoiser in place, except output layers."""
    from diffusers.models.activations import GEGLU

    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if is_supported_resnet_block(child):
                setattr(parent, name, FusedResnetBlock(child, kernels))
            elif is_supported_transformer(child):
                setattr(parent, name, FusedTransformer(child, kernels))
            elif type(child) is GEGLU and child.proj.bias is not None:
                setattr(parent, name, FusedGEGLU(child.proj, kernels))
            elif is_supported_upsampler(child):
                setattr(parent, name, FusedUpsampler(child.conv, kernels))
            elif is_supported_convolution(child):
                setattr(parent, name, FrozenConv2d(child, kernels))
    for block in network.modules():
        for resnet, transformer in zip(*layers_of(block), strict=False):
            if type(resnet) is FusedResnetBlock and resnet.scale == 1.0:
                if type(transformer) is FusedTransformer:
                    transformer.take_biased_input(resnet)


def call_denoiser(
    denoiser: nn.Module,
    noisy: Float[Tensor, "B C h w"],
    timesteps: Int[Tensor, " B"],
    text: Float[Tensor, "N L D"],
    camera: Float[Tensor, "B K"] | None = None,
    residuals: tuple[Sequence[Tensor], Tensor] | tuple[None, None] = (None, None),
) -> Float[Tensor, "N C h w"]:
    """Return the output of a denoiser for B views and N texts, where N is a multiple of B. The views are
    repeated N / B times.

    denoiser: a diffusers denoiser or a `FusedDenoiser`. camera: the camera input, or None for a denoiser that
    takes no cameras. residuals: a ControlNet's residuals for the down blocks and the middle block, with N
    samples each.
    """
    if not isinstance(denoiser, FusedDenoiser):
        noisy, timesteps = repeated(noisy, len(text)), repeated(timesteps, len(text))
        camera = None if camera is None else repeated(camera, len(text))
    return denoiser(
        noisy,
        timesteps,
        encoder_hidden_states=text,
        class_labels=camera,
        down_block_additional_residuals=residuals[0],
        mid_block_additional_residual=residuals[1],
        return_dict=False,
    )[0]


def layers_of(block: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the residual blocks in a block of a denoiser, and the transformers that follow them."""
    return list(getattr(block, "resnets", ())), list(getattr(block, "attentions", ()))


def is_supported_upsampler(module: nn.Module | None) -> bool:
    """Return whether a block doubles the size by repeating pixels, then applies a 3 × 3 convolution."""
    from diffusers.models.upsampling import Upsample2D

    return (
        type(module) is Upsample2D
        and module.norm is None
        and module.interpolate
        and module.use_conv
        and module.name == "conv"
        and is_supported_convolution(module.conv)
        and module.conv.bias is not None
        and (module.conv.kernel_size, module.conv.stride, module.conv.padding) == ((3, 3), (1, 1), (1, 1))
    )


def is_supported_denoiser(unet: nn.Module) -> bool:
    """Return whether `FusedDenoiser` supports this network.

    It must be a `UNet2DConditionModel` whose blocks are already fused.
    """
    from diffusers.models.unets import unet_2d_blocks
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    kinds = (
        {unet_2d_blocks.CrossAttnDownBlock2D, unet_2d_blocks.DownBlock2D},
        {unet_2d_blocks.UNetMidBlock2DCrossAttn},
        {unet_2d_blocks.CrossAttnUpBlock2D, unet_2d_blocks.UpBlock2D},
    )
    if type(unet) is not UNet2DConditionModel:
        return False
    blocks = (unet.down_blocks, [unet.mid_block], unet.up_blocks)
    return (
        all(type(block) in kind for part, kind in zip(blocks, kinds, strict=True) for block in part)
        and all(is_timed_resnet(layer) for part in blocks for b in part for layer in b.resnets)
        and all(type(layer) is FusedTransformer for part in blocks for b in part for layer in layers_of(b)[1])
        and unet.encoder_hid_proj is unet.time_embed_act is None
        and unet.config.addition_embed_type is None
        and not unet.config.center_input_sample
        and not unet.config.class_embeddings_concat
        and unet.conv_norm_out is not None
        and unet.config.sample_size % 2**unet.num_upsamplers == 0
    )


def is_timed_resnet(module: nn.Module) -> bool:
    return type(module) is FusedResnetBlock and module.time_emb_proj is not None


class FusedUpsampler(nn.Module):
    """diffusers' `Upsample2D`: repeat every pixel twice along both axes, then apply a 3 × 3 convolution.

    The rows 2i − 1, 2i and 2i + 1 of the enlarged image are the rows i − 1, i and i of the input. In row 2i
    of the output, the last two rows of the weights are therefore applied to the same row of the input and can
    be added to each other. In row 2i + 1, this holds for the first two rows of the weights. Columns are
    treated in the same way. A pixel of the output thus depends on 2 × 2 pixels of the input, with different
    weights for even and odd rows and columns. One 2 × 2 convolution with four sets of weights computes all
    pixels, with 4/9 of the operations.
    """

    def __init__(self, convolution: nn.Conv2d, kernels: Kernels):
        super().__init__()
        self.bias = convolution.bias
        weight = convolution.weight.float()
        first, middle, last = weight.unbind(2)
        by_row = [torch.stack(pair, 2) for pair in ((first, middle + last), (first + middle, last))]
        parts = []
        for rows in by_row:
            first, middle, last = rows.unbind(3)
            parts += [torch.stack(pair, 3) for pair in ((first, middle + last), (first + middle, last))]
        parts = torch.cat(parts).to(convolution.weight.dtype)
        self.weight = nn.Parameter(parts.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self._interleave = kernels.interleave

    def forward(
        self, x: Float[Tensor, "B C H W"], output_size: Sequence[int] | None = None
    ) -> Float[Tensor, "B D H2 W2"]:
        """output_size: (2H, 2W) or None. No other size is supported."""
        assert output_size is None or tuple(output_size) == (2 * x.shape[2], 2 * x.shape[3])
        return self._interleave(F.conv2d(x, self.weight, padding=1), self.bias)


class FusedDenoiser(nn.Module):
    """The forward pass of a `UNet2DConditionModel` with fused blocks."""

    def __init__(self, unet: nn.Module):
        """unet: a denoiser for which `is_supported_denoiser` holds."""
        super().__init__()
        self.unet = unet
        used = [layers_of(block) for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)]
        self._resnets = [layer for resnets, _ in used for layer in resnets]
        self._transformers = [layer for _, transformers in used for layer in transformers]
        self.shift_weight = frozen(torch.cat([layer.time_emb_proj.weight for layer in self._resnets]))
        self.shift_bias = frozen(
            torch.cat([layer.time_emb_proj.bias + layer.conv1.bias for layer in self._resnets])
        )
        blocks = [block for transformer in self._transformers for block in transformer.blocks]
        self.text_weight = frozen(torch.cat([block.text_weight for block in blocks]))
        # The blocks use parts of the joint weights, so that no weight is stored twice.
        sizes = [len(layer.conv1.bias) for layer in self._resnets]
        for part, layer in zip(self.shift_weight.split(sizes), self._resnets, strict=True):
            layer.time_emb_proj.weight.data = part
        for part, block in zip(self._per_block(self.text_weight, 0), blocks, strict=True):
            block.text_weight.data = part

    def _per_block(self, x: Tensor, dim: int) -> tuple[Tensor, ...]:
        blocks = [block for transformer in self._transformers for block in transformer.blocks]
        return x.split([len(block.text_weight) for block in blocks], dim)

    def forward(
        self,
        noisy: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
        encoder_hidden_states: Float[Tensor, "N L D"],
        class_labels: Float[Tensor, "B K"] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[Float[Tensor, "N C h w"]]:
        """The arguments are those of diffusers' denoiser, but the number of texts N can be a multiple of the
        number of latents B. The latents are then repeated N / B times. The ControlNet's residuals have N
        samples.
        """
        assert not return_dict
        unet, count = self.unet, len(encoder_hidden_states)
        shifts = self._time_shifts(noisy, timesteps, class_labels, count)
        text = self._keys_and_values(encoder_hidden_states)
        x = unet.conv_in(noisy)
        skips = [x]
        for block in unet.down_blocks:
            outputs = self._layers(block, x, shifts, text)
            x = outputs[-1]
            skips += outputs
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)
        if down_block_additional_residuals is not None:
            skips = [
                repeated(skip, count) + added
                for skip, added in zip(skips, down_block_additional_residuals, strict=True)
            ]
        first, *others = unet.mid_block.resnets
        x = first(x, shift=next(shifts)[: len(x)])
        for transformer, resnet in zip(unet.mid_block.attentions, others, strict=True):
            x = resnet(transformer.transform(x, next(text)), shift=next(shifts))
        if mid_block_additional_residual is not None:
            x = repeated(x, count) + mid_block_additional_residual
        for block in unet.up_blocks:
            x = self._layers(block, x, shifts, text, skips)[-1]
            for upsampler in block.upsamplers or ():
                x = upsampler(x)
        x = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
        return (x,)

    def _layers(
        self,
        block: nn.Module,
        x: Tensor,
        shifts: Iterator[Tensor],
        text: Iterator[Sequence[Tensor]],
        skips: list[Tensor] | None = None,
    ) -> list[Tensor]:
        """Return the output after each residual block and its transformer. skips: the stack of skip
        connections, or None for a block without skip connections. Each residual block takes the last element
        of the stack and concatenates it with its input.
        """
        outputs = []
        for resnet, transformer in zip_longest(*layers_of(block)):
            if skips is None:
                x = resnet(x, shift=next(shifts)[: len(x)])
            else:
                x = resnet.forward_pair(x, repeated(skips.pop(), len(x)), next(shifts))
            if transformer is not None:
                x = transformer.transform(x, next(text))
            outputs.append(x)
        return outputs

    def _time_shifts(
        self, noisy: Tensor, timesteps: Tensor, class_labels: Tensor | None, count: int
    ) -> Iterator[Float[Tensor, "N D"]]:
        """Return the shift of each residual block, in the order in which the blocks are called. A shift is
        the projected embedding of time and camera plus the bias of the block's first convolution.
        """
        unet = self.unet
        embedding = unet.time_embedding(unet.get_time_embed(noisy, timesteps))
        camera = unet.get_class_embed(noisy, class_labels)
        embedding = embedding if camera is None else embedding + camera
        shifts = F.linear(F.silu(repeated(embedding, count)), self.shift_weight, self.shift_bias)
        return iter(shifts.split([len(layer.conv1.bias) for layer in self._resnets], dim=1))

    def _keys_and_values(self, text: Float[Tensor, "N L D"]) -> Iterator[Sequence[Tensor]]:
        """Return the keys and values of the blocks of each transformer, in the order in which the blocks are
        called.
        """
        parts = iter(self._per_block(F.linear(text, self.text_weight), 2))
        return iter([[next(parts) for _ in transformer.blocks] for transformer in self._transformers])
