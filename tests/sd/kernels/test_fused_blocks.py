"""Test that values and gradients of the fused blocks equal those of the diffusers blocks they replace."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sd.kernels import fused_blocks, select
from sd.kernels.reference import REFERENCE
from sd.stable_diffusion import StableDiffusion

TRITON = select.triton_kernels()
BOTH = pytest.mark.parametrize("kernels", [REFERENCE, TRITON], ids=["torch", "triton"])


def frozen(module, device):
    """Return the frozen module, with noise added to biases and normalisation weights.

    Without the noise, the weights of normalisations would be 1 and their biases 0, and both would have no
    effect.
    """
    generator = torch.Generator().manual_seed(0)
    for weight in module.requires_grad_(False).parameters():
        if weight.ndim == 1:
            weight += 0.3 * torch.randn(weight.shape, generator=generator).to(weight)
    return module.eval().to(device)


@pytest.fixture
def encoder(model_folder, kernel_device):
    from diffusers import AutoencoderKL

    return frozen(AutoencoderKL.from_pretrained(model_folder, subfolder="vae").encoder, kernel_device)


def value_and_gradient(function, x):
    """Return function(x), and the gradient of a weighted sum of its elements with respect to x."""
    x = x.clone().requires_grad_()
    value = function(x)
    weights = torch.linspace(-1, 1, value.numel(), device=x.device).reshape(value.shape)
    return value.detach(), torch.autograd.grad((value * weights).sum(), x)[0]


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        assert (one - other).abs().max() < 2e-5 * other.abs().max()


def count_modules(module, *kinds):
    return [sum(type(part) is kind for part in module.modules()) for kind in kinds]


@BOTH
def test_fused_encoder_equals_diffusers(encoder, kernels, kernel_device):
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    old = (ResnetBlock2D, nn.GroupNorm, nn.Conv2d, Attention)
    before = count_modules(encoder, *old)
    assert min(before) > 0
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(kernel_device)
    expected = value_and_gradient(encoder, x)
    fused_blocks.fuse_encoder_blocks(encoder, kernels)
    assert count_modules(encoder, *old) == [0] * 4
    fused = fused_blocks.FusedResnetBlock, fused_blocks.FusedGroupNorm, fused_blocks.SingleHeadAttention
    assert count_modules(encoder, *fused) == [before[0], before[1], before[3]]
    # The encoder contains no separate padding modules, because the fused blocks do the padding.
    assert count_modules(encoder, nn.ZeroPad2d, nn.Sequential) == [0, 0]
    assert any(getattr(module, "pad", False) for module in encoder.modules())
    assert_close(value_and_gradient(encoder, x), expected)


def test_unsupported_blocks_are_not_replaced(kernel_device):
    from diffusers.models.attention_processor import Attention
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D

    sizes = {"in_channels": 8, "temb_channels": 16, "groups": 2}
    assert fused_blocks.is_supported_resnet_block(ResnetBlock2D(**sizes))
    for other in (
        {"non_linearity": "mish"},
        {"time_embedding_norm": "scale_shift"},
        {"up": True},
        {"down": True},
        {"skip_time_act": True},
    ):
        assert not fused_blocks.is_supported_resnet_block(ResnetBlock2D(**sizes, **other)), other
    plain = {"query_dim": 8, "heads": 1, "dim_head": 8, "norm_num_groups": 2}
    assert fused_blocks.is_supported_attention(Attention(**plain))
    for other in (
        {"heads": 2},
        {"norm_num_groups": None},
        {"cross_attention_dim": 4},
        {"qk_norm": "layer_norm"},
    ):
        assert not fused_blocks.is_supported_attention(Attention(**plain | other)), other
    assert not fused_blocks.is_supported_norm(
        nn.GroupNorm(2, 8, affine=False)
    ) and not fused_blocks.is_supported_norm(None)
    for other in ({"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect"}, {"padding": "same"}):
        assert not fused_blocks.is_supported_convolution(nn.Conv2d(8, 8, 3, **other)), other
    assert fused_blocks.is_supported_downsampler(Downsample2D(8, use_conv=True, padding=0))
    for other in ({"padding": 1}, {"use_conv": False}, {"norm_type": "rms_norm"}):
        assert not fused_blocks.is_supported_downsampler(
            Downsample2D(8, **{"use_conv": True, "padding": 0} | other)
        )


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("channels", [8, 12])
def test_fused_resnet_block_with_time_embedding_and_scale(scale, channels):
    from diffusers.models.resnet import ResnetBlock2D

    sizes = {"in_channels": 8, "out_channels": channels, "temb_channels": 16, "groups": 4}
    block = frozen(ResnetBlock2D(**sizes, output_scale_factor=scale), "cpu")
    time = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(2))
    fused = fused_blocks.FusedResnetBlock(block, REFERENCE)
    assert_close(
        value_and_gradient(lambda x: fused(x, time), x), value_and_gradient(lambda x: block(x, time), x)
    )


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (3, {"padding": 1}),
        (8, {"padding": 1}),
        (8, {"padding": 0}),
        (8, {"stride": 2}),
        (3, {"stride": 2, "padding": 1}),
        (3, {"stride": (3, 2)}),
    ],
)
def test_frozen_convolution_saves_only_its_weight(size, channels, options):
    convolution = frozen(nn.Conv2d(channels, 4, 3, **options), "cpu")
    x = torch.randn(2, channels, size, size + 1, generator=torch.Generator().manual_seed(0))
    fused = fused_blocks.FrozenConv2d(convolution, REFERENCE)
    assert fused._has_turned_weight == ((channels, options) == (8, {"padding": 1}))
    assert_close(value_and_gradient(fused, x), value_and_gradient(convolution, x))
    saved_bytes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: saved_bytes.append(saved.shape), lambda saved: saved
    ):
        fused(x.requires_grad_())
    assert saved_bytes == [(4, channels, 3, 3)]


@pytest.mark.parametrize(("stored_tokens", "joint_samples"), [(10, 1), (9, 2), (10, 2), (10, 3)])
def test_wide_head_attention_equals_torch(stored_tokens, joint_samples, monkeypatch):
    monkeypatch.setattr(fused_blocks, "STORED_TOKENS", stored_tokens)
    monkeypatch.setattr(fused_blocks, "JOINT_SAMPLES", joint_samples)
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad_output = (torch.randn(3, 10, 6, generator=generator, dtype=torch.float64) for _ in range(4))
    q, k, v = (part.requires_grad_() for part in (q, k, v))
    found = fused_blocks.WideHeadAttention.apply(q, k, v, 0.3)
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    assert torch.allclose(found, expected, rtol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), grad_output),
        torch.autograd.grad(expected, (q, k, v), grad_output),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-10)


def test_fused_encoder_saves_less_than_half_the_memory(encoder):
    def saved_bytes(module):
        sizes = {}

        def note(tensor):
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            module(torch.rand(1, 3, 16, 16, device=next(module.parameters()).device, requires_grad=True))
        weights = {weight.data_ptr() for weight in [*module.parameters(), *module.buffers()]}
        return sum(size for place, size in sizes.items() if place not in weights)

    before = saved_bytes(encoder)
    fused_blocks.fuse_encoder_blocks(encoder, TRITON)
    assert saved_bytes(encoder) < 0.5 * before


def test_missing_triton_selects_the_reference_with_a_warning(monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "sd.kernels.group_norm_triton", None)
    monkeypatch.delattr("sd.kernels.group_norm_triton")
    with caplog.at_level(logging.WARNING):
        assert select.choose_kernels(torch.device("cuda")) is REFERENCE
    (record,) = caplog.records
    assert "torch's kernels" in record.getMessage() and "triton" in record.getMessage()


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_override_selects_the_kernels(name, monkeypatch, kernel_device):
    monkeypatch.setattr(select, "OVERRIDE", name)
    assert select.choose_kernels(kernel_device).name == name


def test_self_test_finds_a_faulty_kernel(kernel_device):
    select.self_test(TRITON, kernel_device)
    for name, faulty in {
        "gated_linear": lambda x, *_: torch.cat([x, x], -1),
        "layer_norm": lambda x, *_: x,
        "group_norm_of_pair": lambda x, other, *_: torch.cat([x, other], 1),
        "image_convolution": lambda x, *_: x[:, :1].expand(-1, 16, -1, -1),
        "interleave": lambda x, _: 2 * x[:, :4, :2, :2].repeat_interleave(2, 2).repeat_interleave(2, 3),
        "add_bias": lambda x, _: x,
    }.items():
        with pytest.raises(ArithmeticError, match=name):
            select.self_test(replace(TRITON, **{name: faulty}), kernel_device)


@pytest.mark.gpu
def test_prior_on_cuda_uses_fused_blocks_and_equals_the_cpu(model_folder):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = {}
    for device in ("cpu", "cuda"):
        prior = StableDiffusion.from_pretrained(str(model_folder), torch.device(device))
        assert (count_modules(prior.vae.encoder, fused_blocks.FusedResnetBlock)[0] > 0) == (device == "cuda")
        x = images.to(device).requires_grad_()
        latents = prior.encode(x, noise.to(device))
        (gradient,) = torch.autograd.grad(latents.square().sum(), x)
        found[device] = latents.detach().cpu(), gradient.cpu()
    for one, other in zip(found["cuda"], found["cpu"], strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.gpu
def test_half_precision_error_of_the_full_size_encoder():
    """In half precision, the error of the fused blocks is at most 1.3 times that of diffusers' blocks."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    with torch.device("cuda"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
    encoder = frozen(vae.encoder, "cuda")
    x = torch.rand(2, 3, 512, 512, device="cuda") * 2 - 1
    grad_output = torch.randn(2, 8, 64, 64, device="cuda")

    def both(module, x):
        x = x.clone().requires_grad_()
        value = module(x)
        return value.detach().float(), torch.autograd.grad(value, x, grad_output.to(value.dtype))[0].float()

    exact = both(encoder, x)
    half = copy.deepcopy(encoder).half().to(memory_format=torch.channels_last)
    usual = both(half, x.half())
    fused_blocks.fuse_encoder_blocks(half, select.choose_kernels(torch.device("cuda")))
    fused = both(half, x.half().contiguous(memory_format=torch.channels_last))
    for name, truth, old, new in zip(("value", "gradient"), exact, usual, fused, strict=True):
        relative_error = [((found - truth).norm() / truth.norm()).item() for found in (old, new)]
        assert relative_error[1] < 1.3 * relative_error[0] + 1e-4, (name, relative_error)
