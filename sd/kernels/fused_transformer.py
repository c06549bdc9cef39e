"""A fused replacement for the transformers of diffusers' denoiser. It is not differentiable.

Each matrix product that ends a residual branch is added to the residual stream in place, but the bias of this
product is left out. Instead, each norm adds the sum of all biases that were left out before it to its input.
The last layer of the transformer multiplies this sum by its weight and adds the result to its own bias.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sd.kernels.fused_blocks import (
    FusedGroupNorm,
    FusedResnetBlock,
    add_product,
    is_supported_convolution,
    is_supported_norm,
)
from sd.kernels.reference import Kernels, alternated
from sd.multi_view import JointAttention


def is_supported_transformer(module: nn.Module | None) -> bool:
    """Return whether a block is a `Transformer2DModel` over pixels that `FusedTransformer` supports."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    return (
        type(module) is Transformer2DModel
        and module.is_input_continuous
        and is_supported_norm(module.norm)
        and all(is_pointwise(layer) for layer in (module.proj_in, module.proj_out))
        and all(is_supported_transformer_block(block) for block in module.transformer_blocks)
    )


def is_pointwise(module: nn.Module) -> bool:
    """Return whether a layer is a linear layer or a 1 × 1 convolution, with a bias. Such a layer applies one
    matrix to every pixel.
    """
    is_convolution = is_supported_convolution(module) and module.kernel_size == module.stride == (1, 1)
    return (type(module) is nn.Linear or is_convolution) and module.bias is not None


def is_supported_transformer_block(module: nn.Module) -> bool:
    """Return whether a block consists of (norm, self-attention), (norm, cross-attention to a text) and (norm,
    GEGLU network).
    """
    from diffusers.models.attention import BasicTransformerBlock

    return (
        type(module) is BasicTransformerBlock
        and module.norm_type == "layer_norm"
        and module.attn2 is not None
        and not module.only_cross_attention
        and module.pos_embed is None
        and module._chunk_size is None
        and not hasattr(module, "fuser")
        and all(
            type(norm) is nn.LayerNorm and norm.elementwise_affine and norm.bias is not None
            for norm in (module.norm1, module.norm2, module.norm3)
        )
        and all(is_supported_head_attention(layer) for layer in (module.attn1, module.attn2))
        and is_supported_gated_network(module.ff)
    )


def is_supported_head_attention(module: nn.Module) -> bool:
    """Return whether a layer is attention without other operations, in which the projections of queries, keys
    and values have no bias. Self-attention may be joint over views (sd/multi_view.py).
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    if type(module) is not Attention:
        return False
    processor = module.processor
    if type(processor) is JointAttention:
        processor = processor.processor
    return (
        type(processor) is AttnProcessor2_0
        and module.group_norm is module.spatial_norm is module.norm_q is module.norm_k is None
        and not module.norm_cross
        and not module.residual_connection
        and module.rescale_output_factor == 1
        and all(type(layer) is nn.Linear for layer in (module.to_q, module.to_k, module.to_v))
        and module.to_q.bias is module.to_k.bias is module.to_v.bias is None
        and type(module.to_out[0]) is nn.Linear
        and module.to_out[0].bias is not None
    )


def is_supported_gated_network(module: nn.Module) -> bool:
    """Return whether a network is (GEGLU, linear), both with a bias."""
    from diffusers.models.activations import GEGLU

    layers = [layer for layer in module.net if not isinstance(layer, nn.Dropout)]
    return (
        [type(layer) for layer in layers] == [GEGLU, nn.Linear]
        and layers[0].proj.bias is not None
        and layers[1].bias is not None
    )


def frozen(weight: Tensor) -> nn.Parameter:
    """Return a parameter without gradient, in contiguous memory."""
    return nn.Parameter(weight.detach().contiguous(), requires_grad=False)


def repeated(x: Tensor, count: int) -> Tensor:
    """Return the batch x, repeated so that it has `count` samples. The memory layout is kept."""
    return x if len(x) == count else torch.cat([x] * (count // len(x)))


class FusedGEGLU(nn.Module):
    """diffusers' `GEGLU`."""

    def __init__(self, proj: nn.Linear, kernels: Kernels):
        super().__init__()
        self.weight, self.bias = frozen(alternated(proj.weight)), frozen(alternated(proj.bias))
        self._kernel = kernels.gated_linear

    def forward(self, x: Float[Tensor, "*M C"]) -> Float[Tensor, "*M I"]:
        return self._kernel(x, self.weight, self.bias)


class ShiftedLayerNorm(nn.Module):
    """Layer normalisation of x + shift, with a constant shift."""

    def __init__(self, norm: nn.LayerNorm, shift: Float[Tensor, " C"] | None, kernels: Kernels):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.register_buffer("shift", None if shift is None else shift.to(norm.weight), persistent=False)
        self._kernel = kernels.layer_norm

    def forward(self, x: Float[Tensor, "*M C"]) -> Float[Tensor, "*M C"]:
        return self._kernel(x, self.weight, self.bias, self.eps, self.shift)


class FusedTransformer(nn.Module):
    """diffusers' `Transformer2DModel`.

    The tokens share the memory of the channels-last image, and the output is also channels-last. diffusers'
    block returns a channels-first image, which every later kernel would have to convert.
    """

    def __init__(self, module: nn.Module, kernels: Kernels):
        super().__init__()
        self.norm = FusedGroupNorm(module.norm, kernels, silu=False)
        self.in_weight, self.in_bias = module.proj_in.weight, module.proj_in.bias
        self.out_weight = module.proj_out.weight
        self.blocks = nn.ModuleList()
        missing = None
        for block in module.transformer_blocks:
            self.blocks.append(FusedTransformerBlock(block, missing, kernels))
            missing = self.blocks[-1].missing_bias
        image = self.out_weight.flatten(1).float() @ missing
        self.register_buffer("out_bias", (module.proj_out.bias + image).to(self.in_bias), persistent=False)
        self.bias_is_in_input = False
        self.register_buffer("shift", None, persistent=False)

    def take_biased_input(self, resnet: FusedResnetBlock) -> None:
        """Let the preceding residual block add the bias of the transformer's last layer, so that the product
        of the last layer can be added to the transformer's input in place.
        """
        assert resnet.scale == 1.0 and not self.bias_is_in_input
        resnet.last_bias += self.out_bias
        self.bias_is_in_input, self.shift = True, -self.out_bias[None]

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        encoder_hidden_states: Float[Tensor, "B L E"],
        return_dict: bool = False,
        **others: object,
    ) -> tuple[Float[Tensor, "B C H W"]]:
        """The signature is the one that diffusers' denoiser calls. others: masks and similar arguments, all
        None. If the preceding block adds the bias, x is overwritten.
        """
        assert not return_dict and all(value is None for value in others.values()), others
        text = [F.linear(encoder_hidden_states, block.text_weight) for block in self.blocks]
        return (self.transform(x, text),)

    def transform(
        self, x: Float[Tensor, "B C H W"], text: Sequence[Float[Tensor, "T L C2"]]
    ) -> Float[Tensor, "T C H W"]:
        """text: for each block, the keys and values of T texts. T is a multiple of B. The samples of x are
        repeated T / B times. If the preceding block adds the bias, x is overwritten.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        tokens = self.norm(x, self.shift).permute(0, 2, 3, 1).flatten(1, 2)
        tokens = F.linear(tokens, self.in_weight.flatten(1), self.in_bias)
        for block, keys_and_values in zip(self.blocks, text, strict=True):
            tokens = block(tokens, keys_and_values)
        image = repeated(x, len(tokens)).permute(0, 2, 3, 1)
        if not self.bias_is_in_input:
            image = image + self.out_bias
        add_product(image, tokens, self.out_weight.flatten(1))
        return image.permute(0, 3, 1, 2)


class FusedTransformerBlock(nn.Module):
    """diffusers' `BasicTransformerBlock` without the biases of the three products that are added to the
    residual stream.

    missing_bias: the sum of the biases that the output lacks, in float32. text_weight: the weights of the
    cross-attention's keys, followed by the weights of its values.
    """

    def __init__(self, block: nn.Module, missing: Float[Tensor, " C"] | None, kernels: Kernels):
        """missing: the sum of the biases that the input lacks, or None if it lacks no biases."""
        super().__init__()
        attn1, attn2 = block.attn1, block.attn2
        gated, last = (layer for layer in block.ff.net if not isinstance(layer, nn.Dropout))
        self.views = attn1.processor.views if type(attn1.processor) is JointAttention else 1
        self.heads, self.text_heads = attn1.heads, attn2.heads
        self.self_weight = frozen(torch.cat([attn1.to_q.weight, attn1.to_k.weight, attn1.to_v.weight]))
        self.query_weight = attn2.to_q.weight
        self.text_weight = frozen(torch.cat([attn2.to_k.weight, attn2.to_v.weight]))
        self.self_out, self.text_out, self.last = attn1.to_out[0].weight, attn2.to_out[0].weight, last.weight
        self.gated = FusedGEGLU(gated.proj, kernels)
        self.norm1 = ShiftedLayerNorm(block.norm1, missing, kernels)
        missing = attn1.to_out[0].bias.float() + (0 if missing is None else missing)
        self.norm2 = ShiftedLayerNorm(block.norm2, missing, kernels)
        missing = missing + attn2.to_out[0].bias.float()
        self.norm3 = ShiftedLayerNorm(block.norm3, missing, kernels)
        self.register_buffer("missing_bias", missing + last.bias.float(), persistent=False)

    def forward(
        self, tokens: Float[Tensor, "B N C"], text: Float[Tensor, "T L C2"]
    ) -> Float[Tensor, "T N C"]:
        """tokens: overwritten by this call. text: keys and values of the texts. See
        `FusedTransformer.transform`.
        """
        add_product(tokens, self._self_attention(self.norm1(tokens)), self.self_out)
        tokens = repeated(tokens, len(text))
        add_product(tokens, self._text_attention(self.norm2(tokens), text), self.text_out)
        add_product(tokens, self.gated(self.norm3(tokens)), self.last)
        return tokens

    def _self_attention(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N I"]:
        """The attention is joint over the tokens of `views` consecutive samples."""
        joined = F.linear(x, self.self_weight).view(len(x) // self.views, -1, 3 * self.heads, self.head_width)
        q, k, v = joined.transpose(1, 2).chunk(3, dim=1)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), x.shape[1], -1)

    def _text_attention(self, x: Float[Tensor, "B N C"], text: Float[Tensor, "B L C2"]) -> Tensor:
        heads = (self.text_heads, -1)
        q = F.linear(x, self.query_weight).unflatten(-1, heads).transpose(1, 2)
        k, v = (part.unflatten(-1, heads).transpose(1, 2) for part in text.chunk(2, dim=-1))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    @property
    def head_width(self) -> int:
        return len(self.self_weight) // (3 * self.heads)
