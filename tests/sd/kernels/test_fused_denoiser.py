"""Test that the values of the fused denoiser and of its transformers equal those of diffusers."""

import copy

import pytest
import torch
from test_fused_blocks import BOTH, TRITON, assert_close, count_modules, frozen
from torch import nn
from torch.nn import functional as F

from sd.conditions import ViewConditions
from sd.kernels import fused_blocks, fused_denoiser, fused_transformer
from sd.kernels.reference import REFERENCE
from sd.stable_diffusion import StableDiffusion, noise_of


@pytest.fixture
def unet(model_folder, kernel_device):
    from diffusers import UNet2DConditionModel

    return frozen(UNet2DConditionModel.from_pretrained(model_folder, subfolder="unet"), kernel_device)


def inputs(device, texts=2, side=8):
    """Return two latents of `side`² pixels, two timesteps and the given number of texts."""
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, side, side, generator=generator).to(device)
    text = torch.randn(texts, 5, 32, generator=generator).to(device)
    return noisy, torch.tensor([20, 700], device=device), text


@BOTH
def test_fused_denoiser_equals_diffusers(unet, kernels, kernel_device):
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from diffusers.models.upsampling import Upsample2D

    # Triton's interpreter takes seconds for larger latents.
    given = inputs(kernel_device, side=8 if kernels is REFERENCE else 4)
    with torch.no_grad():
        expected = noise_of(unet, *given)
        (blocks,) = count_modules(unet, BasicTransformerBlock)
        denoiser = fused_denoiser.fuse_denoiser(unet, kernels)
        found = noise_of(denoiser, *given)
        if kernels is REFERENCE:
            # The forward pass of diffusers also works with the fused blocks.
            assert_close([noise_of(unet, *given)], [expected])
    assert type(denoiser) is fused_denoiser.FusedDenoiser
    old = (ResnetBlock2D, Transformer2DModel, BasicTransformerBlock, GEGLU, Upsample2D)
    assert count_modules(denoiser, *old, nn.GroupNorm, nn.Conv2d) == [0] * 7
    assert count_modules(denoiser, fused_transformer.FusedTransformerBlock) == [blocks] and blocks > 0
    assert_close([found], [expected])


@pytest.mark.parametrize("texts", [4, 6])
def test_texts_share_the_latents(unet, texts, kernel_device):
    noisy, times, text = inputs(kernel_device, texts)
    with torch.no_grad():
        expected = noise_of(unet, noisy, times, text)
        many = [tensor.repeat(texts // 2, *[1] * (tensor.ndim - 1)) for tensor in (noisy, times)]
        assert torch.equal(expected, noise_of(unet, *many, text))
        denoiser = fused_denoiser.fuse_denoiser(unet, REFERENCE)
        batches = []
        first = denoiser.unet.conv_in
        first.register_forward_hook(lambda module, given, output: batches.append(len(output)))
        assert_close([noise_of(denoiser, noisy, times, text)], [expected])
    assert batches == [2]


def test_prior_reads_the_first_copy_of_the_conditions(model_folder):
    prior = StableDiffusion.from_pretrained(str(model_folder), torch.device("cpu"))
    noisy, times, text = inputs("cpu", 4)
    many = torch.cat([noisy, noisy]), torch.cat([times, times])
    expected = prior.predict_noise(*many, text)
    copies = ViewConditions().repeat(2)
    assert copies.copies == 2
    assert torch.equal(prior.predict_noise(*many, text, copies), expected)
    seen = []
    prior._denoise = lambda *given: seen.append([len(tensor) for tensor in given]) or torch.zeros(4, 4, 8, 8)
    prior.predict_noise(*many, text, copies)
    assert seen == [[2, 2, 4]]


def test_half_precision_error_of_the_fused_denoiser(unet, kernel_device):
    kernels = TRITON if kernel_device.type == "cuda" else REFERENCE
    noisy, times, text = inputs(kernel_device)

    def relative_error(module, dtype):
        value = noise_of(module, noisy.to(dtype), times, text.to(dtype))
        return ((value.float() - truth).norm() / truth.norm()).item()

    with torch.no_grad():
        truth = noise_of(unet, noisy, times, text)
        half = copy.deepcopy(unet).half()
        usual = relative_error(half, torch.float16)
        half = fused_denoiser.fuse_denoiser(half, kernels)
        assert 0 < relative_error(half, torch.float16) < 1.5 * usual < 0.02


def test_fused_denoiser_keeps_channels_last_memory(unet, kernel_device):
    """With any other memory layout, the next kernel would have to copy its input.

    On a GPU, torch's own group normalisation always returns contiguous memory, so the prior uses Triton's
    normalisation there.
    """
    kernels = TRITON if kernel_device.type == "cuda" else REFERENCE
    denoiser = fused_denoiser.fuse_denoiser(unet.to(memory_format=torch.channels_last), kernels)
    seen = set()

    def check(module, inputs, output):
        if output.ndim == 4 and output.shape[2] > 1:
            assert output.is_contiguous(memory_format=torch.channels_last), module
            seen.add(type(module))

    for module in denoiser.unet.modules():
        if module is not denoiser.unet:
            module.register_forward_hook(check)
    noisy, times, text = inputs(kernel_device)
    with torch.no_grad():
        noise_of(denoiser, noisy.contiguous(memory_format=torch.channels_last), times, text)
    assert seen >= {
        fused_blocks.FusedResnetBlock,
        fused_blocks.FusedGroupNorm,
        fused_blocks.FrozenConv2d,
        fused_denoiser.FusedUpsampler,
    }


@BOTH
@pytest.mark.parametrize("linear", [False, True])
def test_fused_transformer_equals_diffusers(linear, kernels, kernel_device):
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 16, "num_layers": 2}
    others = {"norm_num_groups": 4, "cross_attention_dim": 12, "use_linear_projection": linear}
    module = frozen(Transformer2DModel(**sizes, **others), kernel_device)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 5, 3, generator=generator).to(kernel_device)
    text = torch.randn(2, 7, 12, generator=generator).to(kernel_device)
    before = x.clone()
    with torch.no_grad():
        (expected,) = module(x, encoder_hidden_states=text, return_dict=False)
        assert fused_transformer.is_supported_transformer(module)
        fused = fused_transformer.FusedTransformer(module, kernels)
        (found,) = fused(x, encoder_hidden_states=text, attention_mask=None, return_dict=False)
        assert_close([found], [expected])
        with pytest.raises(AssertionError):
            fused(x, encoder_hidden_states=text, attention_mask=torch.ones(2, 15), return_dict=False)
    assert torch.equal(x, before)


def test_unsupported_transformers_are_not_replaced():
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    sizes = {"num_attention_heads": 2, "attention_head_dim": 8}
    plain = sizes | {"in_channels": 16, "norm_num_groups": 4, "cross_attention_dim": 12}
    assert fused_transformer.is_supported_transformer(Transformer2DModel(**plain))
    for other in (
        {"only_cross_attention": True},
        {"norm_type": "ada_norm", "num_embeds_ada_norm": 10},
        {"norm_elementwise_affine": False},
        {"cross_attention_dim": None},
        {"attention_bias": True},
        {"activation_fn": "gelu"},
    ):
        assert not fused_transformer.is_supported_transformer(Transformer2DModel(**plain | other)), other
    block = BasicTransformerBlock(16, **sizes, cross_attention_dim=12)
    assert fused_transformer.is_supported_transformer_block(block)
    block.attn1.rescale_output_factor = 2
    assert not fused_transformer.is_supported_transformer_block(block)
    block.attn1.rescale_output_factor = 1
    block.set_chunk_feed_forward(2, 1)
    assert not fused_transformer.is_supported_transformer_block(block)


@BOTH
def test_fused_upsampler_equals_diffusers(kernels, kernel_device):
    from diffusers.models.upsampling import Upsample2D

    module = frozen(Upsample2D(6, use_conv=True, out_channels=5), kernel_device)
    x = torch.randn(2, 6, 4, 3, generator=torch.Generator().manual_seed(1)).to(kernel_device)
    assert fused_denoiser.is_supported_upsampler(module)
    expected = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), module.conv.weight, padding=1)
    expected += module.conv.bias[:, None, None]
    with torch.no_grad():
        assert_close([fused_denoiser.FusedUpsampler(module.conv, kernels)(x)], [expected])
        assert_close([module(x)], [expected])
    for other in ({"use_conv": False}, {"norm_type": "rms_norm"}, {"kernel_size": 1, "padding": 0}):
        changed = Upsample2D(6, **{"use_conv": True} | other)
        assert not fused_denoiser.is_supported_upsampler(changed), other


def test_unsupported_denoisers_keep_the_forward_pass_of_diffusers(unet, kernel_device):
    other = copy.deepcopy(unet)
    other.time_embed_act = nn.SiLU()
    given = inputs(kernel_device, 4)
    with torch.no_grad():
        expected = noise_of(other, *given)
        found = fused_denoiser.fuse_denoiser(other, REFERENCE)
        assert found is other
        assert_close([noise_of(found, *given)], [expected])
