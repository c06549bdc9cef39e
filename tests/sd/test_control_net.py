"""Test that a ControlNet with the denoiser equals diffusers' modules with the same weights."""

import copy
import inspect
import json
import shutil

import pytest
import torch
from torch import nn
from toy_model import fill_zero_convolutions, write_control_net, write_model

from render.camera import orbit
from sd.conditions import ViewConditions
from sd.control_net import check_control_net, controlled_noise_of, residuals_of
from sd.guidance import Guidance, GuidanceConfig, Prior
from sd.kernels.fused_denoiser import fuse_control_net_blocks, fuse_denoiser
from sd.kernels.reference import REFERENCE
from sd.kernels.select import triton_kernels
from sd.loading.control_folder import load_control_net, resolve_control_net
from sd.multi_view import camera_matrices
from sd.schedule import Phase, damped
from sd.stable_diffusion import StableDiffusion, noise_of

CPU = torch.device("cpu")
PHASE = Phase("p", (0.02, 0.98), damped, "image", rotate_normals=False)


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory):
    return write_control_net(tmp_path_factory.mktemp("control") / "depth", model_folder / "unet")


@pytest.fixture(scope="module")
def prior(model_folder, folder):
    prior = StableDiffusion.from_pretrained(str(model_folder), CPU, keep_trainable=True)
    prior.attach_control_net(load_control_net(folder, torch.float32))
    return prior


def inputs(count=2, seed=1):
    """Return x_t, t, the text embedding and the control image."""
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(count, 4, 8, 8, generator=generator)
    text = torch.randn(count, 77, 32, generator=generator)
    return (
        noisy,
        torch.tensor([20, 700, 300, 900])[:count],
        text,
        torch.rand(count, 3, 32, 32, generator=generator),
    )


def test_protocol_checks_find_every_member_of_the_prior(prior, model_folder):
    """Python 3.12's isinstance with a protocol looks members up with getattr_static, which finds no
    submodules and no buffers.
    """
    plain = StableDiffusion.from_pretrained(str(model_folder), CPU)
    members = Prior.__annotations__.keys() | {name for name in vars(Prior) if not name.startswith("_")}
    assert {"control_net", "alphas_cumprod", "predict_noise"} <= members
    for name in members:
        for each in (prior, plain):
            inspect.getattr_static(each, name)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_predictions_equal_those_of_diffusers(prior, model_folder, folder, weight):
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(model_folder, subfolder="unet")
    control_net = ControlNetModel.from_pretrained(folder)
    noisy, time, text, image = inputs()
    with torch.no_grad():
        down, middle = control_net(noisy, time, text, image, conditioning_scale=weight, return_dict=False)
        expected = unet(
            noisy, time, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
    found = prior.predict_noise(noisy, time, text, ViewConditions(None, image, torch.tensor(weight)))
    assert (found - expected).abs().max() < 1e-5
    assert not torch.allclose(found, noise_of(unet, noisy, time, text), atol=1e-2)


def test_zero_convolutions_and_weight_zero_change_nothing(prior, model_folder, tmp_path):
    noisy, time, text, image = inputs()
    expected = noise_of(prior.unet, noisy, time, text)
    off = ViewConditions(None, image, torch.tensor(0.0))
    assert torch.equal(prior.predict_noise(noisy, time, text, off), expected)
    fresh = write_control_net(tmp_path / "fresh", model_folder / "unet", zero=True)
    new = StableDiffusion.from_pretrained(str(model_folder), CPU)
    new.attach_control_net(load_control_net(fresh, torch.float32))
    on = ViewConditions(None, image, torch.tensor(1.0))
    assert torch.equal(new.predict_noise(noisy, time, text, on), expected)


def test_the_gradient_through_both_networks_is_that_of_diffusers(prior, model_folder, folder):
    """The eager path is differentiable. Its gradient in x_t equals that of diffusers' modules."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(model_folder, subfolder="unet")
    control_net = ControlNetModel.from_pretrained(folder)
    noisy, time, text, image = inputs()
    slopes = []
    for networks in ((prior.unet, prior.control_net), (unet, control_net)):
        x = noisy.clone().requires_grad_()
        value = controlled_noise_of(*networks, x, time, text, image, torch.tensor(0.7))
        slopes.append(torch.autograd.grad((value * noisy.cos()).sum(), x)[0])
    assert slopes[0].abs().max() > 1e-3 and (slopes[0] - slopes[1]).abs().max() < 1e-5


def test_fused_blocks_of_both_networks_give_the_same(prior):
    unet, control_net = copy.deepcopy(prior.unet), copy.deepcopy(prior.control_net)
    given = (*inputs(), torch.tensor(0.8))
    expected = controlled_noise_of(unet, control_net, *given)
    unet = fuse_denoiser(unet, REFERENCE)
    fuse_control_net_blocks(control_net, REFERENCE)
    with torch.no_grad():
        found = controlled_noise_of(unet, control_net, *given)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("kernels", [REFERENCE, triton_kernels()], ids=["torch", "triton"])
def test_fused_blocks_of_a_control_net_give_the_same_residuals(kernels, kernel_device):
    from diffusers import ControlNetModel
    from diffusers.models.resnet import ResnetBlock2D

    torch.manual_seed(0)
    control_net = ControlNetModel(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(4, 4),
    )
    fill_zero_convolutions(control_net)
    control_net = control_net.requires_grad_(False).to(kernel_device)
    noisy, text, image = torch.randn(1, 4, 2, 2), torch.randn(1, 3, 8), torch.rand(1, 3, 4, 4)
    given = [x.to(kernel_device) for x in (noisy, torch.tensor([500]), text, image, torch.tensor(0.8))]
    expected = residuals_of(control_net, *given[:3], given[3:])
    fuse_control_net_blocks(control_net, kernels)
    assert not any(isinstance(module, ResnetBlock2D | nn.Conv2d) for module in control_net.modules())
    with torch.no_grad():
        found = residuals_of(control_net, *given[:3], given[3:])
    for one, other in zip((*found[0], found[1]), (*expected[0], expected[1]), strict=True):
        assert other.abs().max() > 0 and (one - other).abs().max() < 2e-5 * other.abs().max()


def test_a_control_net_of_a_prior_of_several_views_gets_the_cameras(tmp_path):
    model = write_model(tmp_path / "model", views=4)
    prior = StableDiffusion.from_pretrained(str(model), CPU)
    folder = write_control_net(tmp_path / "control", model / "unet")
    prior.attach_control_net(load_control_net(folder, torch.float32))
    noisy, time, text, image = inputs(4)
    cameras = orbit(4, (8, 8)).world_to_clip
    found = prior.predict_noise(noisy, time, text, ViewConditions(cameras, image, torch.tensor(1.0)))
    camera = camera_matrices(cameras)
    down, middle = prior.control_net(noisy, time, text, image, class_labels=camera, return_dict=False)
    expected = prior.unet(
        noisy,
        time,
        text,
        class_labels=camera,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    ).sample
    assert torch.equal(found, expected)
    changed = image.clone()
    changed[1] = 0
    other = prior.predict_noise(noisy, time, text, ViewConditions(cameras, changed, torch.tensor(1.0)))
    assert ((other - found).flatten(1).abs().amax(1) > 1e-6).all()


def distilled(prior, annealing=1.0, **keys):
    config = GuidanceConfig(text="a car", guidance_weight=2.0, **keys)
    guidance = Guidance(prior, config, "bad", CPU)
    phase = Phase("p", (0.02, 0.98), damped, "image", rotate_normals=False, annealing=annealing)
    cameras = orbit(2, (8, 8))
    image = torch.randn(2, 8, 8, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sample = guidance.sample(
        cameras.view_index, phase, torch.Generator().manual_seed(0), cameras.world_to_clip
    )
    control = torch.rand(2, 48, 48, 3, generator=torch.Generator().manual_seed(2))
    sample = guidance.with_control(sample, control)
    loss, stats = guidance(image, sample, phase)
    loss.backward()
    return image.grad, stats, sample, guidance


def test_both_halves_of_the_guidance_get_the_residuals_with_the_annealed_weight(prior):
    found, _, sample, guidance = distilled(prior, 0.25, control_weight=(1.0, 0.2))
    assert guidance.control == "depth" and sample.control.shape == (2, 3, 32, 32)
    image = torch.randn(2, 8, 8, 4, generator=torch.Generator().manual_seed(1)).permute(0, 3, 1, 2)
    abar = prior.alphas_cumprod[sample.timesteps][:, None, None, None]
    noisy = abar.sqrt() * image + (1 - abar).sqrt() * sample.noise
    weight = torch.tensor(0.8)  # 1 − 0.25 (1 − 0.2)
    networks = prior.unet, prior.control_net
    negative, text = (
        controlled_noise_of(*networks, noisy, sample.timesteps, text, sample.control, weight)
        for text in (guidance.negative.expand(2, -1, -1), guidance.text[:1].expand(2, -1, -1))
    )
    expected = damped(abar) * (negative + 2 * (text - negative) - sample.noise)
    assert torch.allclose(found.permute(0, 3, 1, 2), expected, atol=1e-5)


def test_low_memory_is_the_same_step(prior):
    whole, pieces = (distilled(prior, low_memory=low) for low in (False, True))
    assert whole[0].abs().max() > 1e-3 and torch.allclose(whole[0], pieces[0], atol=1e-5)


def test_vsd_s_denoiser_gets_the_residuals_too(prior):
    """If both denoisers get the residuals, e_cfg equals e_φ for an untrained LoRA, so the gradient is 0."""
    config = GuidanceConfig(text="a car", guidance_weight=1.0, score="vsd")
    guidance = Guidance(prior, config, "bad", CPU)
    cameras = orbit(2, (8, 8))
    image = torch.randn(2, 8, 8, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sample = guidance.sample(
        cameras.view_index, PHASE, torch.Generator().manual_seed(0), cameras.world_to_clip
    )
    sample = guidance.with_control(sample, torch.rand(2, 32, 32, 3))
    loss, stats = guidance(image, sample, PHASE)
    assert stats["gradient_norm"] < 1e-5 and stats["lora_loss"] > 0
    assert not any(parameter.grad is not None for parameter in prior.control_net.parameters())


def test_a_missing_folder_and_an_unknown_hub_id(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match="control_model = 'a/b': not in the hub cache"):
        resolve_control_net("a/b")
    with pytest.raises(FileNotFoundError, match="is no such folder"):
        resolve_control_net("./nowhere")


def test_a_download_takes_config_and_full_precision_weights(folder, monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    files = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
    files += ["diffusion_pytorch_model.fp16.safetensors", "images/in.png", "old/config.json", "README.md"]
    taken = []

    def list_files(hub_id, local_files_only, **patterns):
        taken.extend(filter_repo_objects(files, **patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", list_files)
    assert resolve_control_net("someone/depth") == folder
    assert taken == files[:2]


def test_a_folder_with_half_precision_files_only(folder, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    name = "diffusion_pytorch_model"
    (half / f"{name}.safetensors").rename(half / f"{name}.fp16.safetensors")
    expected = load_control_net(folder, torch.float32).state_dict()
    found = load_control_net(resolve_control_net(str(half)), torch.float32).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def damage_json(folder):
    (folder / "config.json").write_text("{")


def other_class(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "UNet2DConditionModel"}))


def cut_weights(folder):
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def take_weights(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "diffusion_pytorch_model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if "controlnet_mid" not in name}
    save_file(weights, path, {"format": "pt"})


def other_width(folder):
    from diffusers import ControlNetModel

    config = ControlNetModel.load_config(folder)
    ControlNetModel.from_config({**config, "cross_attention_dim": 48}).save_pretrained(folder)


def other_scale(folder):
    from diffusers import ControlNetModel

    channels = (8, 8, 8, 16)
    config = {**ControlNetModel.load_config(folder), "conditioning_embedding_out_channels": channels}
    ControlNetModel.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_json, ["is not a JSON object"]),
        (other_class, ["it holds UNet2DConditionModel", "ControlNetModel"]),
        (cut_weights, ["cannot be loaded from"]),
        (take_weights, ["2 weights are missing", "controlnet_mid_block"]),
        (other_width, ["cross_attention_dim = 48", "sd_model has 32"]),
        (other_scale, ["reduces the control image by 8", "4 pixels per latent"]),
    ],
)
def test_wrong_control_nets_are_one_line(damage, words, folder, prior, tmp_path):
    shutil.copytree(folder, tmp_path / "control")
    damage(tmp_path / "control")
    with pytest.raises(ValueError, match="control_model") as error:
        control_net = load_control_net(resolve_control_net(str(tmp_path / "control")), torch.float32)
        check_control_net(control_net.config, prior.unet.config, prior.image_size // prior.latent_size)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_control_net_with_one_channel_is_refused(prior):
    config = copy.copy(prior.control_net.config)
    other = type("Config", (), {**config, "conditioning_channels": 1})
    with pytest.raises(ValueError, match="conditioning_channels = 1"):
        check_control_net(other, prior.unet.config, 4)


@pytest.mark.gpu
def test_cuda_graphs_and_fused_blocks_agree_with_the_cpu(model_folder, folder, prior):
    fast = StableDiffusion.from_pretrained(str(model_folder), torch.device("cuda"))
    fast.attach_control_net(load_control_net(folder, torch.float16))
    for seed, weight in enumerate((1.0, 0.3, 0.0)):
        given = inputs(seed=seed)
        conditions = ViewConditions(None, given[3], torch.tensor(weight))
        expected = prior.predict_noise(*given[:3], conditions)
        moved = ViewConditions(None, given[3].cuda(), torch.tensor(weight, device="cuda"))
        found = fast.predict_noise(*(x.cuda() for x in given[:3]), moved).cpu()
        assert (found - expected).norm() < 0.02 * expected.norm()
    assert len(fast._denoise.cache.recordings) == 1
