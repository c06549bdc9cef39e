"""Values and gradients of the fused blocks equal those of the diffusers blocks that they replace."""

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
    """The frozen module, with noise added to biases and normalisation weights so that they have an effect."""
    generator = torch.Generator().manual_seed(0)
    for weight in module.requires_grad_(False).parameters():
        if weight.ndim == 1:
            weight += 0.3 * torch.randn(weight.shape, generator=generator).to(weight)
    return module.eval().to(device)


@pytest.fixture
def encoder(model_folder, kernel_device):
    from diffusers import AutoencoderKL

    return frozen(AutoencoderKL.from_pretrained(model_folder, subfolder="vae").encoder, kernel_device)


def answer(function, x):
    """The value of function(x) and the gradient of a scalar of it with respect to x."""
    x = x.clone().requires_grad_()
    value = function(x)
    weights = torch.linspace(-1, 1, value.numel(), device=x.device).reshape(value.shape)
    return value.detach(), torch.autograd.grad((value * weights).sum(), x)[0]


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        assert (one - other).abs().max() < 2e-5 * other.abs().max()


def counts(module, *kinds):
    return [sum(type(part) is kind for part in module.modules()) for kind in kinds]


@BOTH
def test_an_encoder_answers_as_before_with_every_block_replaced(encoder, kernels, kernel_device):
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    old = (ResnetBlock2D, nn.GroupNorm, nn.Conv2d, Attention)
    before = counts(encoder, *old)
    assert min(before) > 0
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(kernel_device)
    expected = answer(encoder, x)
    fused_blocks.speed_up_encoder(encoder, kernels)
    assert counts(encoder, *old) == [0] * 4
    assert counts(encoder, fused_blocks.Residual, fused_blocks.Norm, fused_blocks.OneHeadAttention) == [
        before[0], before[1], before[3],
    ]  # fmt: skip
    assert_alike(answer(encoder, x), expected)


@BOTH
def test_a_denoiser_answers_as_before_with_every_block_replaced(model_folder, kernels, kernel_device):
    from diffusers import UNet2DConditionModel
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    unet = frozen(UNet2DConditionModel.from_pretrained(model_folder, subfolder="unet"), kernel_device)
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 8, 8, generator=generator).to(kernel_device)
    text = torch.randn(2, 5, 32, generator=generator).to(kernel_device)
    times = torch.tensor([20, 700], device=kernel_device)
    with torch.no_grad():
        expected = unet(noisy, times, text).sample
        (gated,) = counts(unet, GEGLU)
        fused_blocks.speed_up_denoiser(unet, kernels)
        found = unet(noisy, times, text).sample
    assert counts(unet, ResnetBlock2D, GEGLU, nn.GroupNorm, nn.Conv2d) == [0] * 4
    assert counts(unet, Transformer2DModel, BasicTransformerBlock) == [0, 0]
    assert (
        counts(unet, fused_blocks.Residual, fused_blocks.GatedLinear, fused_blocks.Block)[1:]
        == [gated, gated]
        and gated > 0
    )
    assert_alike([found], [expected])


@BOTH
def test_a_denoiser_in_half_precision_is_no_farther_from_the_truth(model_folder, kernels, kernel_device):
    from diffusers import UNet2DConditionModel

    exact = frozen(UNet2DConditionModel.from_pretrained(model_folder, subfolder="unet"), kernel_device)
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 8, 8, generator=generator).to(kernel_device)
    text = torch.randn(2, 5, 32, generator=generator).to(kernel_device)
    times = torch.tensor([20, 700], device=kernel_device)

    def farther(module, dtype):
        answer = module(noisy.to(dtype), times, text.to(dtype)).sample
        return ((answer.float() - truth).norm() / truth.norm()).item()

    with torch.no_grad():
        truth = exact(noisy, times, text).sample
        half = copy.deepcopy(exact).half()
        usual = farther(half, torch.float16)
        fused_blocks.speed_up_denoiser(half, kernels)
        assert 0 < farther(half, torch.float16) < 1.5 * usual < 0.02


def test_the_image_stays_channels_last_all_the_way(model_folder):
    """Any other memory layout costs a copy in the next kernel."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(model_folder, subfolder="unet").requires_grad_(False)
    unet = unet.to(memory_format=torch.channels_last)
    fused_blocks.speed_up_denoiser(unet, REFERENCE)
    seen = set()

    def check(module, inputs, output):
        image = output[0] if isinstance(output, tuple) else output
        if image.ndim == 4 and image.shape[2] > 1:
            assert image.is_contiguous(memory_format=torch.channels_last), module
            seen.add(type(module))

    for module in unet.modules():
        if module is not unet:
            module.register_forward_hook(check)
    noisy = torch.zeros(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        unet(noisy, torch.tensor([20, 700]), torch.zeros(2, 5, 32))
    assert {fused_blocks.Residual, fused_blocks.Transformer, fused_blocks.FrozenConvolution} <= seen


@BOTH
@pytest.mark.parametrize("linear", [False, True])
def test_a_transformer_answers_as_before(linear, kernels, kernel_device):
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 16, "num_layers": 2}
    others = {"norm_num_groups": 4, "cross_attention_dim": 12, "use_linear_projection": linear}
    module = frozen(Transformer2DModel(**sizes, **others), kernel_device)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 5, 3, generator=generator).to(kernel_device)
    text = torch.randn(2, 7, 12, generator=generator).to(kernel_device)
    with torch.no_grad():
        (expected,) = module(x, encoder_hidden_states=text, return_dict=False)
        assert fused_blocks.is_plain_transformer(module)
        quick = fused_blocks.Transformer(module, kernels)
        (found,) = quick(x, encoder_hidden_states=text, attention_mask=None, return_dict=False)
        assert_alike([found], [expected])
        with pytest.raises(AssertionError):
            quick(x, encoder_hidden_states=text, attention_mask=torch.ones(2, 15), return_dict=False)


def test_blocks_of_another_make_are_left_alone(kernel_device):
    from diffusers.models.attention_processor import Attention
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D

    sizes = {"in_channels": 8, "temb_channels": 16, "groups": 2}
    assert fused_blocks.is_plain_residual(ResnetBlock2D(**sizes))
    for other in (
        {"non_linearity": "mish"},
        {"time_embedding_norm": "scale_shift"},
        {"up": True},
        {"down": True},
        {"skip_time_act": True},
    ):
        assert not fused_blocks.is_plain_residual(ResnetBlock2D(**sizes, **other)), other
    plain = {"query_dim": 8, "heads": 1, "dim_head": 8, "norm_num_groups": 2}
    assert fused_blocks.is_one_head(Attention(**plain))
    for other in (
        {"heads": 2},
        {"norm_num_groups": None},
        {"cross_attention_dim": 4},
        {"qk_norm": "layer_norm"},
    ):
        assert not fused_blocks.is_one_head(Attention(**plain | other)), other
    assert not fused_blocks.is_plain_norm(
        nn.GroupNorm(2, 8, affine=False)
    ) and not fused_blocks.is_plain_norm(None)
    for other in ({"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect"}, {"padding": "same"}):
        assert not fused_blocks.is_plain_convolution(nn.Conv2d(8, 8, 3, **other)), other
    assert fused_blocks.is_padded_convolution(Downsample2D(8, use_conv=True, padding=0))
    for other in ({"padding": 1}, {"use_conv": False}, {"norm_type": "rms_norm"}):
        assert not fused_blocks.is_padded_convolution(
            Downsample2D(8, **{"use_conv": True, "padding": 0} | other)
        )


def test_transformers_of_another_make_are_left_alone():
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    sizes = {"num_attention_heads": 2, "attention_head_dim": 8}
    plain = sizes | {"in_channels": 16, "norm_num_groups": 4, "cross_attention_dim": 12}
    assert fused_blocks.is_plain_transformer(Transformer2DModel(**plain))
    for other in (
        {"only_cross_attention": True},
        {"norm_type": "ada_norm", "num_embeds_ada_norm": 10},
        {"norm_elementwise_affine": False},
        {"cross_attention_dim": None},
    ):
        assert not fused_blocks.is_plain_transformer(Transformer2DModel(**plain | other)), other
    block = BasicTransformerBlock(16, **sizes, cross_attention_dim=12)
    assert fused_blocks.is_plain_block(block)
    block.set_chunk_feed_forward(2, 1)
    assert not fused_blocks.is_plain_block(block)


@pytest.mark.parametrize("channels", [8, 3])
def test_padding_below_and_on_the_right(channels):
    x = torch.randn(2, channels, 4, 5, generator=torch.Generator().manual_seed(1))
    assert_alike(answer(fused_blocks.PadBelow(), x), answer(lambda x: F.pad(x, (0, 1, 0, 1)), x))
    assert fused_blocks.PadBelow()(x).is_contiguous(memory_format=torch.channels_last)
    # Slices of a batch, whose memory may not be aligned to 16 bytes.
    for part in (x.contiguous(memory_format=torch.channels_last)[1:], x.half()[1:]):
        assert torch.equal(fused_blocks.PadBelow()(part), F.pad(part, (0, 1, 0, 1)))


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("channels", [8, 12])
def test_a_residual_block_with_time_shortcut_and_scale(scale, channels):
    from diffusers.models.resnet import ResnetBlock2D

    sizes = {"in_channels": 8, "out_channels": channels, "temb_channels": 16, "groups": 4}
    block = frozen(ResnetBlock2D(**sizes, output_scale_factor=scale), "cpu")
    time = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(2))
    quick = fused_blocks.Residual(block, REFERENCE)
    assert_alike(answer(lambda x: quick(x, time), x), answer(lambda x: block(x, time), x))


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"stride": 2}, {"stride": 2, "padding": 1}, {"stride": (3, 2)}]
)
def test_a_frozen_convolution_has_the_gradient_and_keeps_nothing_but_its_weight(size, options):
    convolution = frozen(nn.Conv2d(3, 4, 3, **options), "cpu")
    x = torch.randn(2, 3, size, size + 1, generator=torch.Generator().manual_seed(0))
    quick = fused_blocks.FrozenConvolution(convolution, REFERENCE)
    assert_alike(answer(quick, x), answer(convolution, x))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.append(saved.shape), lambda saved: saved
    ):
        quick(x.requires_grad_())
    assert kept == [(4, 3, 3, 3)]


def test_wide_attention_is_attention():
    generator = torch.Generator().manual_seed(0)
    q, k, v, pull = (torch.randn(3, 10, 6, generator=generator, dtype=torch.float64) for _ in range(4))
    q, k, v = (part.requires_grad_() for part in (q, k, v))
    found = fused_blocks.WideAttention.apply(q, k, v, 0.3)
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    assert torch.allclose(found, expected, rtol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), pull),
        torch.autograd.grad(expected, (q, k, v), pull),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-10)


def test_what_an_encoder_keeps_for_its_gradient_is_less_than_half(encoder):
    def kept(module):
        sizes = {}

        def note(tensor):
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            module(torch.rand(2, 3, 32, 32, device=next(module.parameters()).device, requires_grad=True))
        weights = {weight.data_ptr() for weight in [*module.parameters(), *module.buffers()]}
        return sum(size for place, size in sizes.items() if place not in weights)

    before = kept(encoder)
    fused_blocks.speed_up_encoder(encoder, TRITON)
    assert kept(encoder) < 0.5 * before


def test_without_triton_torch_goes_on_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "sd.kernels.group_norm_triton", None)
    monkeypatch.delattr("sd.kernels.group_norm_triton")
    with caplog.at_level(logging.WARNING):
        assert select.choose_kernels(torch.device("cuda")) is REFERENCE
    (record,) = caplog.records
    assert "torch's own kernels" in record.getMessage() and "triton" in record.getMessage()


def test_kernels_are_tried_out(kernel_device):
    select.try_out(TRITON, kernel_device)
    for name, faulty in {
        "geglu": lambda x: x[..., ::2],
        "sum_norm": lambda x, y, *_: (x + y, x),
        "add_bias": lambda x, _: x,
    }.items():
        with pytest.raises(ArithmeticError, match=name):
            select.try_out(replace(TRITON, **{name: faulty}), kernel_device)


@pytest.mark.gpu
def test_the_prior_of_a_gpu_is_the_faster_one_and_agrees_with_the_cpu(model_folder):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = {}
    for device in ("cpu", "cuda"):
        prior = StableDiffusion.from_pretrained(str(model_folder), torch.device(device))
        assert (counts(prior.vae.encoder, fused_blocks.Residual)[0] > 0) == (device == "cuda")
        x = images.to(device).requires_grad_()
        latents = prior.encode(x, noise.to(device))
        (slope,) = torch.autograd.grad(latents.square().sum(), x)
        found[device] = latents.detach().cpu(), slope.cpu()
    for one, other in zip(found["cuda"], found["cpu"], strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.gpu
def test_the_encoder_of_full_size_in_half_precision():
    """The error against float32 is at most that of diffusers' blocks in half precision."""
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
    pull = torch.randn(2, 8, 64, 64, device="cuda")

    def both(module, x):
        x = x.clone().requires_grad_()
        value = module(x)
        return value.detach().float(), torch.autograd.grad(value, x, pull.to(value.dtype))[0].float()

    exact = both(encoder, x)
    half = copy.deepcopy(encoder).half().to(memory_format=torch.channels_last)
    usual = both(half, x.half())
    fused_blocks.speed_up_encoder(half, select.choose_kernels(torch.device("cuda")))
    quick = both(half, x.half().contiguous(memory_format=torch.channels_last))
    for name, truth, old, new in zip(("value", "gradient"), exact, usual, quick, strict=True):
        farther = [((found - truth).norm() / truth.norm()).item() for found in (old, new)]
        assert farther[1] < 1.3 * farther[0] + 1e-4, (name, farther)
