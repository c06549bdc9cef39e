"""Fused replacements for convolutional blocks of diffusers. They make fewer passes over memory.

The replacements use the original weight tensors. The weights are frozen, so only inputs get gradients. For
the backward pass, a residual block stores its input and the input of its second normalisation. Blocks with an
unsupported structure are not replaced.
"""

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sd.kernels.reference import Kernels

# `Kernels.image_convolution` is used for a 3 × 3 convolution if an output value depends on at most this
# number of input values (9 per input channel).
MAX_IMAGE_VALUES = 64
# Whether the gradient of a convolution is computed, where possible, as a convolution with the weights rotated
# by 180°.
TURN_WEIGHTS = True
# See `WideHeadAttention`. 4096 tokens (64² latent pixels) correspond to an image of 512² pixels.
STORED_TOKENS, JOINT_SAMPLES = 4096, 2


def fuse_encoder_blocks(encoder: nn.Module, kernels: Kernels) -> None:
    """Replace the supported blocks of an `AutoencoderKL`'s `Encoder` in place."""
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if is_supported_resnet_block(child):
                setattr(parent, name, FusedResnetBlock(child, kernels))
            elif is_supported_attention(child):
                setattr(parent, name, SingleHeadAttention(child, kernels))
            elif is_supported_downsampler(child):
                padding = nn.ZeroPad2d((0, 1, 0, 1))
                setattr(parent, name, nn.Sequential(padding, FrozenConv2d(child.conv, kernels)))
            elif is_supported_convolution(child):
                setattr(parent, name, FrozenConv2d(child, kernels))
    for block in encoder.modules():
        pad_in_last_resnet(block)
    fuse_output_norm(encoder, kernels)


def pad_in_last_resnet(block: nn.Module) -> None:
    """Let the last residual block of a `DownEncoderBlock2D` write a padded image, if a downsampler follows.
    A separate padding would copy the image.
    """
    from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D

    if type(block) is DownEncoderBlock2D and block.downsamplers is not None and len(block.downsamplers) == 1:
        resnet, downsampler = block.resnets[-1], block.downsamplers[0]
        if type(resnet) is FusedResnetBlock and type(downsampler) is nn.Sequential:
            resnet.pad, block.downsamplers[0] = True, downsampler[1]


def fuse_output_norm(module: nn.Module, kernels: Kernels) -> None:
    """Replace the last norm of a denoiser or encoder and the SiLU after this norm in place, if both are
    supported.
    """
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
    """Return whether a module is a `Downsample2D` of the VAE.

    Before its convolution, it pads one row at the bottom and one column at the right.
    """
    from diffusers.models.downsampling import Downsample2D

    return (
        type(module) is Downsample2D
        and module.use_conv
        and module.padding == 0
        and module.norm is None
        and is_supported_convolution(module.conv)
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


def add_product(total: Float[Tensor, "*M C"], x: Float[Tensor, "*L K"], weight: Float[Tensor, "C K"]) -> None:
    """Add x weightᵀ to `total`, in place. `total` is contiguous. x has the same number of rows as `total`."""
    total.view(-1, total.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight.T)


class FusedGroupNorm(nn.Module):
    """Group normalisation, optionally followed by SiLU."""

    def __init__(self, norm: nn.GroupNorm, kernels: Kernels, silu: bool):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu
        self._kernel, self._pair_kernel = kernels.group_norm_and_skip, kernels.group_norm_of_pair

    def forward(
        self, x: Float[Tensor, "B C H W"], shift: Float[Tensor, "#B C"] | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Normalise x + shift."""
        return self.with_skip(x, shift)[0]

    def with_skip(
        self, x: Float[Tensor, "B C H W"], shift: Float[Tensor, "#B C"] | None = None
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
        """Return the normalised x + shift, and x for a residual connection."""
        return self._kernel(x, self.weight, self.bias, self.groups, self.eps, self.silu, shift)

    def of_pair(
        self, x: Float[Tensor, "B C1 H W"], other: Float[Tensor, "B C2 H W"]
    ) -> Float[Tensor, "B C H W"]:
        """Normalise the concatenation of two tensors. The result is not differentiable."""
        assert self.silu
        return self._pair_kernel(x, other, self.weight, self.bias, self.groups, self.eps)


class InputGradientConv2d(torch.autograd.Function):
    """A convolution that saves only its weight for the backward pass.

    torch's convolution also saves its input, which is only needed for the gradient of the weight.

    convolve: a function (x, weight, bias) that returns the convolution with this stride and padding.
    gradient: a function from the output's gradient to the input's gradient, or None to use torch's function.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, convolve, gradient):
        ctx.save_for_backward(weight)
        ctx.sizes, ctx.stride, ctx.padding, ctx.gradient = x.shape[2:], stride, padding, gradient
        return convolve(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (weight,) = ctx.saved_tensors
        if ctx.gradient is not None:
            return ctx.gradient(dy), None, None, None, None, None, None
        # The convolution does not read the last (size + 2 padding − kernel) mod stride rows and columns of
        # the padded input. output_padding adds these rows and columns to dx, which would otherwise be smaller
        # than x.
        output_padding = [
            (size + 2 * padding - kernel) % stride
            for size, padding, kernel, stride in zip(
                ctx.sizes, ctx.padding, weight.shape[2:], ctx.stride, strict=True
            )
        ]
        dx = F.conv_transpose2d(dy, weight, None, ctx.stride, ctx.padding, output_padding)
        return dx, None, None, None, None, None, None


class FrozenConv2d(nn.Module):
    """A convolution with frozen weights. Only its input gets a gradient."""

    def __init__(self, convolution: nn.Conv2d, kernels: Kernels):
        super().__init__()
        assert not convolution.weight.requires_grad
        self.weight, self.bias = convolution.weight, convolution.bias
        self.stride, self.padding = convolution.stride, convolution.padding
        self._kernels = kernels
        sizes = convolution.kernel_size, self.stride, self.padding
        few_values = convolution.in_channels * 9 <= MAX_IMAGE_VALUES
        self._is_of_image = few_values and sizes == ((3, 3), (1, 1), (1, 1))
        # cuDNN's kernels for tensor cores need a multiple of 8 channels. With another number of channels,
        # cuDNN pads the images, so torch's gradient is used.
        is_same_size = all(size == 2 * padding + 1 for size, padding in zip(sizes[0], sizes[2], strict=True))
        self._has_turned_weight = (
            TURN_WEIGHTS and is_same_size and self.stride == (1, 1) and convolution.in_channels % 8 == 0
        )

    def forward(self, x: Float[Tensor, "B C H W"], with_bias: bool = True) -> Float[Tensor, "B D h w"]:
        bias = self.bias if with_bias else None
        gradient = self._input_gradient if self._has_turned_weight else None
        return InputGradientConv2d.apply(
            x, self.weight, bias, self.stride, self.padding, self._convolve, gradient
        )

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._is_of_image and bias is not None:
            return self._kernels.image_convolution(x, weight, bias)
        y = F.conv2d(x, weight, None, self.stride, self.padding)
        return y if bias is None else self._kernels.add_bias(y, bias)

    def _input_gradient(self, dy: Tensor) -> Tensor:
        """Return the gradient of the input, computed as a forward convolution. cuDNN's forward convolutions
        are faster than its gradient kernels.
        """
        return F.conv2d(dy, self.turned_weight, padding=self.padding)

    @cached_property
    def turned_weight(self) -> Float[Tensor, "C D h w"]:
        """The weight rotated by 180°, with input and output channels exchanged. It is created in the first
        backward pass, so a denoiser, whose blocks have no backward pass, needs no memory for it.
        """
        turned = self.weight.detach().flip(2, 3).transpose(0, 1)
        return turned.contiguous(memory_format=torch.channels_last)


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
        # Whether the output has an additional row of zeros at the bottom and an additional column of zeros at
        # the right.
        self.pad = False
        self._sum = kernels.biased_sum

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        temb: Float[Tensor, "B E"] | None = None,
        shift: Float[Tensor, "#B D"] | None = None,
    ) -> Float[Tensor, "B D H2 W2"]:
        """temb: the time embedding, or None for a block without time embedding. shift: the bias of the first
        convolution plus the projected time embedding, or None to compute this sum from temb.
        """
        inner, x = self.norm1.with_skip(x)
        if shift is None:
            shift = self.conv1.bias[None]
            if self.time_emb_proj is not None and temb is not None:
                shift = shift + self.time_emb_proj(F.silu(temb))
        if self.shortcut is not None:
            x = self.shortcut(x, with_bias=False)
        return self._residual(x, inner, shift)

    def forward_pair(
        self, x: Float[Tensor, "B C1 H W"], other: Float[Tensor, "B C2 H W"], shift: Float[Tensor, "#B D"]
    ) -> Float[Tensor, "B D H W"]:
        """Apply the block to the concatenation of two tensors. The result is not differentiable."""
        if self.shortcut is None or self.shortcut.weight.shape[2:] != (1, 1):
            return self(torch.cat([x, other], dim=1), shift=shift)
        inner = self.norm1.of_pair(x, other)
        weight, channels = self.shortcut.weight.flatten(1), x.shape[1]
        image = F.linear(x.permute(0, 2, 3, 1), weight[:, :channels])
        add_product(image, other.permute(0, 2, 3, 1), weight[:, channels:])
        return self._residual(image.permute(0, 3, 1, 2), inner, shift)

    def _residual(self, x: Tensor, inner: Tensor, shift: Tensor) -> Tensor:
        """Return the block's output. x: the output of the shortcut. inner: the output of the first norm."""
        inner = self.conv1(inner, with_bias=False)
        inner = self.conv2(self.norm2(inner, shift), with_bias=False)
        return self._sum(x, inner, self.last_bias, self.scale, self.pad)


class WideHeadAttention(torch.autograd.Function):
    """Compute softmax(q kᵀ · scale) v for one head that is too wide for torch's tiled kernels.

    The N × N attention weights are stored for the backward pass if N is at most STORED_TOKENS. Otherwise, the
    backward pass computes them again. Products of JOINT_SAMPLES samples are computed together. Fewer samples
    do not fill a large GPU, and the attention weights of more samples do not fit into its cache.
    """

    @staticmethod
    def forward(ctx, q, k, v, scale):
        ctx.scale = scale
        outputs, stored = [], []
        for q_part, k_part, v_part in zip(*(x.split(JOINT_SAMPLES) for x in (q, k, v)), strict=True):
            weights = _weights(q_part, k_part, scale)
            outputs.append(weights @ v_part)
            if q.shape[1] <= STORED_TOKENS:
                stored.append(weights)
        ctx.save_for_backward(q, k, v, *stored)
        return torch.cat(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        *inputs, stored = *ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        gradients = []
        parts = zip(*(x.split(JOINT_SAMPLES) for x in (*inputs, grad_output)), strict=True)
        for number, (q, k, v, dy) in enumerate(parts):
            weights = stored[number] if stored else _weights(q, k, ctx.scale)
            dv = weights.mT @ dy
            dw = torch._softmax_backward_data(dy @ v.mT, weights, -1, weights.dtype)
            gradients.append((_product(dw, k, ctx.scale), _product(dw.mT, q, ctx.scale), dv))
        dq, dk, dv = (torch.cat(parts) for parts in zip(*gradients, strict=True))
        return dq, dk, dv, None


def _weights(q: Float[Tensor, "B N D"], k: Float[Tensor, "B N D"], scale: float) -> Float[Tensor, "B N N"]:
    return torch.softmax(_product(q, k.mT, scale), dim=-1)


def _product(a: Float[Tensor, "B N K"], b: Float[Tensor, "B K M"], scale: float) -> Float[Tensor, "B N M"]:
    """Return a b · scale. The product is scaled before it is rounded, so half precision does not overflow."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


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
        tokens, x = self.norm.with_skip(x)
        tokens = tokens.permute(0, 2, 3, 1).flatten(1, 2)
        mixed = WideHeadAttention.apply(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), self.scale)
        mixed = self.to_out(mixed).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        if self.residual:
            mixed = mixed + x
        return mixed if self.divisor == 1 else mixed / self.divisor
