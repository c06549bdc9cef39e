"""Fused replacements for blocks of diffusers' denoiser and VAE encoder. They make fewer passes over memory.

The replacements use the original weight tensors. The weights are frozen, so only inputs get gradients. For
the backward pass, a residual block stores its input and the input of its second normalisation. Blocks with an
unsupported structure are not replaced.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sd.kernels.reference import Kernels


def fuse_denoiser_blocks(unet: nn.Module, kernels: Kernels) -> None:
    """Replace the supported blocks of a `UNet2DConditionModel` in place.

    The result is not differentiable.
    """
    fuse_control_net_blocks(unet, kernels)
    _fuse_output_norm(unet, kernels)


def fuse_control_net_blocks(network: nn.Module, kernels: Kernels) -> None:
    """Replace the supported blocks of a `ControlNetModel` or denoiser in place, except output layers."""
    from diffusers.models.activations import GEGLU

    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if is_supported_resnet_block(child):
                setattr(parent, name, FusedResnetBlock(child, kernels))
            elif is_supported_transformer(child):
                setattr(parent, name, FusedTransformer(child, kernels))
            elif type(child) is GEGLU:
                setattr(parent, name, FusedGEGLU(child.proj, kernels))
            elif is_supported_convolution(child):
                setattr(parent, name, FrozenConv2d(child, kernels))


def fuse_encoder_blocks(encoder: nn.Module, kernels: Kernels) -> None:
    """Replace the supported blocks of an `AutoencoderKL`'s `Encoder` in place."""
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if is_supported_resnet_block(child):
                setattr(parent, name, FusedResnetBlock(child, kernels))
            elif is_supported_attention(child):
                setattr(parent, name, SingleHeadAttention(child, kernels))
            elif is_supported_downsampler(child):
                setattr(parent, name, nn.Sequential(PadBottomRight(), FrozenConv2d(child.conv, kernels)))
            elif is_supported_convolution(child):
                setattr(parent, name, FrozenConv2d(child, kernels))
    _fuse_output_norm(encoder, kernels)


def _fuse_output_norm(module: nn.Module, kernels: Kernels) -> None:
    if is_supported_norm(module.conv_norm_out) and isinstance(module.conv_act, nn.SiLU):
        module.conv_norm_out = FusedGroupNorm(module.conv_norm_out, kernels, silu=True)
        module.conv_act = nn.Identity()


def is_supported_norm(module: nn.Module | None) -> bool:
    return type(module) is nn.GroupNorm and module.affine


def is_supported_convolution(module: nn.Module | None) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def is_supported_downsampler(module: nn.Module | None) -> bool:
    """Return whether a block pads one row at the bottom and one column at the right before a convolution."""
    from diffusers.models.downsampling import Downsample2D

    return (
        type(module) is Downsample2D
        and module.use_conv
        and module.padding == 0
        and module.norm is None
        and is_supported_convolution(module.conv)
    )


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
    """Return whether a layer applies one matrix to every pixel: a linear layer or a 1 × 1 convolution."""
    return type(module) is nn.Linear or (is_supported_convolution(module) and module.kernel_size == (1, 1))


def is_supported_transformer_block(module: nn.Module) -> bool:
    """Return whether a block consists of (norm, self-attention), (norm, cross-attention), (norm, GEGLU)."""
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
    )


def is_supported_resnet_block(module: nn.Module) -> bool:
    """Return whether a block applies (norm, SiLU, convolution) twice and has a shortcut."""
    from diffusers.models.resnet import ResnetBlock2D

    return (
        type(module) is ResnetBlock2D
        and module.upsample is None
        and module.downsample is None
        and module.time_embedding_norm == "default"
        and not module.skip_time_act
        and isinstance(module.nonlinearity, nn.SiLU)
        and is_supported_norm(module.norm1)
        and is_supported_norm(module.norm2)
        and is_supported_convolution(module.conv1)
        and is_supported_convolution(module.conv2)
        and module.conv1.bias is not None
        and module.conv2.bias is not None
        and (module.conv_shortcut is None or is_supported_convolution(module.conv_shortcut))
    )


def is_supported_attention(module: nn.Module) -> bool:
    """Return whether `SingleHeadAttention` supports a block: single-head self-attention over pixels."""
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    return (
        type(module) is Attention
        and type(module.processor) is AttnProcessor2_0
        and module.heads == 1
        and module.spatial_norm is None
        and is_supported_norm(module.group_norm)
        and module.norm_q is None
        and module.norm_k is None
        and module.to_k.in_features == module.to_q.in_features
    )


class FusedGroupNorm(nn.Module):
    """Group normalisation, optionally followed by SiLU."""

    def __init__(self, norm: nn.GroupNorm, kernels: Kernels, silu: bool):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu
        self._kernel = kernels.group_norm

    def forward(
        self, x: Float[Tensor, "B C H W"], shift: Float[Tensor, "#B C"] | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Normalise x + shift."""
        return self._kernel(x, self.weight, self.bias, self.groups, self.eps, self.silu, shift)


class InputGradientConv2d(torch.autograd.Function):
    """A convolution that saves only its weight for the backward pass.

    torch's convolution also saves its input, which is only needed for the gradient of the weight.

    add_bias: a function (output, bias) that adds the bias.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, add_bias):
        ctx.save_for_backward(weight)
        ctx.sizes, ctx.stride, ctx.padding = x.shape[2:], stride, padding
        y = F.conv2d(x, weight, None, stride, padding)
        return y if bias is None else add_bias(y, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (weight,) = ctx.saved_tensors
        # The convolution does not read the last (size + 2 padding − kernel) mod stride rows and columns of
        # the padded input.
        output_padding = [
            (size + 2 * padding - kernel) % stride
            for size, padding, kernel, stride in zip(
                ctx.sizes, ctx.padding, weight.shape[2:], ctx.stride, strict=True
            )
        ]
        dx = F.conv_transpose2d(dy, weight, None, ctx.stride, ctx.padding, output_padding)
        return dx, None, None, None, None, None


class FrozenConv2d(nn.Module):
    """A convolution with frozen weights. Only its input gets a gradient."""

    def __init__(self, convolution: nn.Conv2d, kernels: Kernels):
        super().__init__()
        assert not convolution.weight.requires_grad
        self.weight, self.bias = convolution.weight, convolution.bias
        self.stride, self.padding = convolution.stride, convolution.padding
        self._add_bias = kernels.add_bias

    def forward(self, x: Float[Tensor, "B C H W"], with_bias: bool = True) -> Float[Tensor, "B D h w"]:
        bias = self.bias if with_bias else None
        return InputGradientConv2d.apply(x, self.weight, bias, self.stride, self.padding, self._add_bias)


class PadBottomRightFunction(torch.autograd.Function):
    """Pad one row of zeros at the bottom and one column at the right. The output is channels-last.

    If the size of a pixel is a multiple of 16 bytes, memory is copied in words of 16 bytes. torch's padding
    copies single elements, which takes about four times as long.
    """

    @staticmethod
    def forward(ctx, x):
        x = x.permute(0, 2, 3, 1).contiguous()
        batch, height, width, channels = x.shape
        y = x.new_empty(batch, height + 1, width + 1, channels)
        y[:, height] = 0
        y[:, :height, width] = 0
        as_16_byte_words(y[:, :height, :width]).copy_(as_16_byte_words(x))
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        dy = dy.permute(0, 2, 3, 1).contiguous()
        return as_16_byte_words(dy[:, :-1, :-1]).contiguous().view(dy.dtype).permute(0, 3, 1, 2)


def as_16_byte_words(x: Tensor) -> Tensor:
    """Return a view of x with 16-byte elements, or x if its last dimension is not a multiple of 16 bytes."""
    return x.view(torch.complex128) if x.shape[-1] * x.element_size() % 16 == 0 else x


class PadBottomRight(nn.Module):
    """`PadBottomRightFunction` as a module."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H+1 W+1"]:
        return PadBottomRightFunction.apply(x)


class FusedResnetBlock(nn.Module):
    """Replacement for diffusers' `ResnetBlock2D`. The kernel after each convolution adds the convolution's
    bias.
    """

    def __init__(self, block: nn.Module, kernels: Kernels):
        super().__init__()
        self.norm1 = FusedGroupNorm(block.norm1, kernels, silu=True)
        self.conv1 = FrozenConv2d(block.conv1, kernels)
        self.time_emb_proj = block.time_emb_proj
        self.norm2 = FusedGroupNorm(block.norm2, kernels, silu=True)
        self.conv2 = FrozenConv2d(block.conv2, kernels)
        self.shortcut = None if block.conv_shortcut is None else FrozenConv2d(block.conv_shortcut, kernels)
        bias = self.conv2.bias.clone()
        if self.shortcut is not None and self.shortcut.bias is not None:
            bias += self.shortcut.bias
        self.register_buffer("last_bias", bias, persistent=False)
        self.scale = 1.0 / block.output_scale_factor
        self._sum = kernels.biased_sum

    def forward(
        self, x: Float[Tensor, "B C H W"], temb: Float[Tensor, "B E"] | None = None
    ) -> Float[Tensor, "B D H W"]:
        """temb: the time embedding, or None if the block has no time embedding."""
        inner = self.conv1(self.norm1(x), with_bias=False)
        shift = self.conv1.bias[None]
        if self.time_emb_proj is not None and temb is not None:
            shift = shift + self.time_emb_proj(F.silu(temb))
        inner = self.conv2(self.norm2(inner, shift), with_bias=False)
        if self.shortcut is not None:
            x = self.shortcut(x, with_bias=False)
        return self._sum(x, inner, self.last_bias, self.scale)


class FusedGEGLU(nn.Module):
    """Replacement for diffusers' `GEGLU`."""

    def __init__(self, proj: nn.Linear, kernels: Kernels):
        super().__init__()
        self.proj = proj
        self._kernel = kernels.geglu

    def forward(self, x: Float[Tensor, "*M C"]) -> Float[Tensor, "*M I"]:
        return self._kernel(self.proj(x))


class FusedTransformer(nn.Module):
    """Replacement for diffusers' `Transformer2DModel`.

    The tokens are a view of the channels-last image, and the output is channels-last. The output of
    diffusers' block is channels-first, so every later kernel would have to convert it.
    """

    def __init__(self, module: nn.Module, kernels: Kernels):
        super().__init__()
        self.norm = FusedGroupNorm(module.norm, kernels, silu=False)
        self.proj_in, self.proj_out = PointwiseLinear(module.proj_in), PointwiseLinear(module.proj_out)
        self.blocks = nn.ModuleList(
            FusedTransformerBlock(block, kernels) for block in module.transformer_blocks
        )

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        encoder_hidden_states: Float[Tensor, "B T E"],
        return_dict: bool = False,
        **others: object,
    ) -> tuple[Float[Tensor, "B C H W"]]:
        """The parameters are those that diffusers' denoiser passes. others: masks and similar arguments, all
        None.
        """
        assert not return_dict and all(value is None for value in others.values()), others
        tokens = self.proj_in(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
        for block in self.blocks:
            tokens = block(tokens, encoder_hidden_states)
        tokens = self.proj_out(tokens) + x.permute(0, 2, 3, 1).flatten(1, 2)
        return (tokens.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2),)


class PointwiseLinear(nn.Module):
    """A linear layer or a 1 × 1 convolution, computed as one matrix product over the pixels."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Float[Tensor, "*M C"]) -> Float[Tensor, "*M D"]:
        return F.linear(x, self.weight.flatten(1), self.bias)


class FusedTransformerBlock(nn.Module):
    """Replacement for diffusers' `BasicTransformerBlock`. One kernel computes a residual sum and the next
    norm.

    The attention processor is kept, so attention over several views still works (sd/multi_view.py).
    """

    def __init__(self, block: nn.Module, kernels: Kernels):
        super().__init__()
        self.attn1, self.attn2, self.ff = block.attn1, block.attn2, block.ff
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        self._kernel = kernels.sum_norm

    def forward(self, x: Float[Tensor, "B N C"], text: Float[Tensor, "B T E"]) -> Float[Tensor, "B N C"]:
        x, inner = self._normed(x, None, self.norm1)
        x, inner = self._normed(x, self.attn1(inner), self.norm2)
        x, inner = self._normed(x, self.attn2(inner, encoder_hidden_states=text), self.norm3)
        return x + self.ff(inner)

    def _normed(self, x: Tensor, y: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        return self._kernel(x, y, norm.weight, norm.bias, norm.eps)


class WideHeadAttention(torch.autograd.Function):
    """Compute softmax(q kᵀ · scale) v for one head that is too wide for torch's tiled kernels.

    Samples are computed one at a time, so that the N × N attention weights of a sample fit into the cache of
    a large GPU. The attention weights are not stored. The backward pass computes them again. q is scaled
    before the product, so that half precision does not overflow.
    """

    @staticmethod
    def forward(ctx, q, k, v, scale):
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return torch.stack(
            [_weights(*pair, scale) @ value for *pair, value in zip(q, k, v, strict=True)], dim=0
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        gradients = []
        for q, k, v, dy in zip(*ctx.saved_tensors, grad_output, strict=True):
            weights = _weights(q, k, ctx.scale)
            dv = weights.T @ dy
            dw = torch._softmax_backward_data(dy @ v.T, weights, -1, weights.dtype)
            gradients.append((dw @ (k * ctx.scale), dw.T @ (q * ctx.scale), dv))
        dq, dk, dv = (torch.stack(parts) for parts in zip(*gradients, strict=True))
        return dq, dk, dv, None


def _weights(q: Float[Tensor, "N D"], k: Float[Tensor, "N D"], scale: float) -> Float[Tensor, "N N"]:
    return torch.softmax((q * scale) @ k.T, dim=-1)


class SingleHeadAttention(nn.Module):
    """Replacement for diffusers' `Attention` with one head, over the pixels of an image."""

    def __init__(self, block: nn.Module, kernels: Kernels):
        super().__init__()
        self.norm = FusedGroupNorm(block.group_norm, kernels, silu=False)
        self.to_q, self.to_k, self.to_v, self.to_out = block.to_q, block.to_k, block.to_v, block.to_out[0]
        self.scale = block.to_q.out_features**-0.5
        self.residual, self.divisor = block.residual_connection, block.rescale_output_factor

    def forward(self, x: Float[Tensor, "B C H W"], temb: None = None) -> Float[Tensor, "B C H W"]:
        """temb: always None, since a VAE has no time embedding."""
        tokens = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        mixed = WideHeadAttention.apply(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), self.scale)
        mixed = self.to_out(mixed).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        if self.residual:
            mixed = mixed + x
        return mixed if self.divisor == 1 else mixed / self.divisor
