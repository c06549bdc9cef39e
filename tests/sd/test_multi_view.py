"""Test a prior that denoises several views together. All tested properties are exact for any weights."""

import copy
import logging
import math
import shutil

import pytest
import torch
from torch import nn
from toy_model import CAMERAS as CAMERA_SETTINGS
from toy_model import write_model

from render.camera import look_at_origin, orbit
from sd.conditions import ViewConditions
from sd.guidance import Guidance, GuidanceConfig
from sd.kernels import select
from sd.kernels.fused_denoiser import FusedDenoiser, fuse_denoiser
from sd.kernels.fused_transformer import FusedTransformer
from sd.kernels.reference import REFERENCE
from sd.multi_view import JointAttention, camera_matrices, join_views, stated_views
from sd.schedule import Phase, damped
from sd.stable_diffusion import StableDiffusion, noise_of

CPU = torch.device("cpu")
VIEWS = 4
PHASE = Phase("p", (0.02, 0.98), damped, "image", rotate_normals=False)


def make_unet(**settings):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
        **settings,
    ).requires_grad_(False)


@pytest.fixture(scope="module")
def unet():
    """Return a denoiser with camera input. In this denoiser, self-attention is separate for each view."""
    return make_unet(**CAMERA_SETTINGS)


@pytest.fixture(scope="module")
def joint(unet):
    joint = copy.deepcopy(unet)
    join_views(joint, VIEWS)
    return joint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("views") / "model", views=VIEWS)


@pytest.fixture(scope="module")
def prior(folder):
    return StableDiffusion.from_pretrained(str(folder), CPU, keep_trainable=True)


def inputs(count, seed=1):
    """Return x_t, t, text and camera of `count` views. x_t, text and camera differ between the views."""
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(count, 4, 8, 8, generator=generator)
    text = torch.randn(count, 5, 32, generator=generator)
    camera = torch.randn(count, 16, generator=generator)
    return noisy, torch.full((count,), 300), text, camera


def taken(tensors, rows):
    return [tensor[rows] for tensor in tensors]


def test_one_view_with_a_zero_camera_embedding_is_the_plain_denoiser(unet):
    plain = make_unet()
    single = copy.deepcopy(unet)
    join_views(single, 1)
    for name, value in single.named_parameters():
        value.copy_(plain.state_dict()[name] if "class_embedding" not in name else torch.zeros(()))
    noisy, time, text, camera = inputs(2)
    expected = noise_of(plain, noisy, time, text)
    assert torch.equal(noise_of(single, noisy, time, text, torch.zeros_like(camera)), expected)


def test_equal_views_give_what_one_view_gives(unet, joint):
    one = taken(inputs(1), slice(None))
    expected = noise_of(unet, *one)
    found = noise_of(joint, *(tensor.repeat_interleave(VIEWS, 0) for tensor in one))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_permutation_of_the_views_permutes_the_output(joint):
    given, order = inputs(VIEWS), torch.tensor([2, 0, 3, 1])
    expected = noise_of(joint, *given)[order]
    found = noise_of(joint, *taken(given, order))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not torch.allclose(found, noise_of(joint, *given), atol=1e-3)


def test_views_of_one_object_depend_on_each_other_and_objects_do_not(unet, joint):
    noisy, *others = inputs(2 * VIEWS)
    changed = noisy.clone()
    changed[1] += 1
    before, after = noise_of(joint, noisy, *others), noise_of(joint, changed, *others)
    difference = (after - before).flatten(1).abs().amax(1)
    assert (difference[:VIEWS] > 1e-4).all() and (difference[VIEWS:] < 1e-6).all()
    alone = (noise_of(unet, changed, *others) - noise_of(unet, noisy, *others)).flatten(1).abs().amax(1)
    assert alone[1] > 1e-4 and (alone[[0, 2, 3]] < 1e-6).all()


def test_joint_attention_is_softmax_over_the_tokens_of_all_views():
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    attention = Attention(query_dim=12, heads=3, dim_head=4).double()
    x = torch.randn(2 * VIEWS, 5, 12, dtype=torch.float64, requires_grad=True)
    expected = []
    for group in x.split(VIEWS):
        tokens = group.reshape(VIEWS * 5, 12)
        heads = []
        for head in range(3):
            q, k, v = (
                tokens @ layer.weight[4 * head : 4 * head + 4].T
                for layer in (attention.to_q, attention.to_k, attention.to_v)
            )
            heads.append(torch.softmax(q @ k.T / math.sqrt(4), dim=-1) @ v)
        expected.append(attention.to_out[0](torch.cat(heads, -1)).reshape(VIEWS, 5, 12))
    expected = torch.cat(expected)
    attention.set_processor(JointAttention(VIEWS, attention.processor))
    found = attention(x)
    assert torch.allclose(found, expected, rtol=1e-10)
    pull = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    slopes = [torch.autograd.grad(value, x, pull, retain_graph=True)[0] for value in (found, expected)]
    assert torch.allclose(*slopes, rtol=1e-9)
    with pytest.raises(AssertionError):
        attention(x, attention_mask=torch.zeros(2 * VIEWS, 5))


def test_fused_blocks_keep_the_joint_attention(joint):
    quick, given = copy.deepcopy(joint), inputs(VIEWS)
    expected = noise_of(quick, *given)
    quick = fuse_denoiser(quick, REFERENCE)
    assert isinstance(quick, FusedDenoiser)
    with torch.no_grad():
        found = noise_of(quick, *given)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("kernels", [REFERENCE, select.triton_kernels()], ids=["torch", "triton"])
def test_a_fused_transformer_of_joint_attention_gives_the_same(kernels, kernel_device):
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 16, "norm_num_groups": 4}
    module = Transformer2DModel(**sizes, cross_attention_dim=12).requires_grad_(False).to(kernel_device)
    x, text = torch.randn(VIEWS, 16, 3, 2).to(kernel_device), torch.randn(VIEWS, 5, 12).to(kernel_device)
    (single,) = module(x, encoder_hidden_states=text, return_dict=False)
    join_views(module, VIEWS)
    (expected,) = module(x, encoder_hidden_states=text, return_dict=False)
    assert (expected - single).abs().max() > 1e-3
    with torch.no_grad():
        (found,) = FusedTransformer(module, kernels)(x, text)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"views": 4}, "views = 4 needs class_embed_type 'projection'"),
        ({"views": 0, **CAMERA_SETTINGS}, "views = 0"),
        ({"views": "4", **CAMERA_SETTINGS}, "views = '4'"),
        ({"views": True, **CAMERA_SETTINGS}, "views = True"),
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ({**CAMERA_SETTINGS, "projection_class_embeddings_input_dim": 12}, "input_dim = 12"),
        ({"num_class_embeds": 10}, "class_embed_type = None"),
    ],
)
def test_settings_of_other_models_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason) as error:
        stated_views(settings)
    assert "\n" not in str(error.value)


def test_stated_views():
    assert stated_views({}) == stated_views(CAMERA_SETTINGS) == 1
    assert stated_views({"views": 4, **CAMERA_SETTINGS}) == 4


def test_the_front_camera_looks_along_minus_x_of_mvdreams_world():
    """The axes of the front camera are those of MVDream's azimuth 90 degrees.

    In MVDream's world, the camera's right is +y, up is +z and backward is +x.
    """
    (front, left) = camera_matrices(orbit(4, (8, 8), elevation_degrees=0.0).world_to_clip).view(-1, 4, 4)[:2]
    expected = [[0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert torch.allclose(front, torch.tensor(expected).float(), atol=1e-6)
    # At azimuth 90 degrees, the camera is on our −x axis, which is −y in MVDream's world.
    assert torch.allclose(left[:3, 3], torch.tensor([0.0, -1.0, 0.0]), atol=1e-6)


def test_camera_matrices_agree_with_the_view_transform():
    azimuth, elevation = torch.tensor([0.3, 2.0, -1.0]), torch.tensor([0.0, 0.7, -0.4])
    shift, fovy = torch.tensor([[0.2, -0.1]] * 3), torch.tensor([0.5, 0.8, 1.0])
    views = look_at_origin(azimuth, elevation, fovy, (16, 24), shift=shift)
    matrices = camera_matrices(views.world_to_clip).view(-1, 4, 4)
    direction = torch.tensor([0.3, -0.5, 0.8])
    clip = (views.world_to_clip[:, :, :3] @ direction).clone()
    focal = 1 / torch.tan(fovy / 2)
    # The projection of a direction gives its camera coordinates: x / (focal / aspect), −y / focal, −w.
    seen = torch.stack([clip[:, 0] / (focal / 1.5), -clip[:, 1] / focal, -clip[:, 3]], -1)
    turned = torch.stack([direction[2], direction[0], direction[1]])
    assert torch.allclose(matrices[:, :3, :3].mT @ turned, seen, atol=1e-5)
    assert torch.allclose(torch.linalg.det(matrices[:, :3, :3]), torch.ones(3), atol=1e-5)
    assert torch.equal(matrices[:, :3, 3], matrices[:, :3, 2])


def test_a_folder_of_four_views_is_read_without_a_warning(folder, prior, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = StableDiffusion.from_pretrained(str(folder), CPU)
    assert not caplog.records and (loaded.views, loaded.takes_cameras) == (VIEWS, True)
    noisy, time, _, _ = inputs(VIEWS)
    text, cameras = prior.embed(["a car"] * VIEWS), orbit(VIEWS, (8, 8)).world_to_clip
    expected = noise_of(prior.unet, noisy, time, text, camera_matrices(cameras))
    assert torch.equal(prior.predict_noise(noisy, time, text, ViewConditions(cameras)), expected)


def guide(prior, **keys):
    return Guidance(prior, GuidanceConfig(text="a car", guidance_weight=2.0, **keys), "bad", CPU)


def distilled(guidance, groups=2, seed=0):
    """Return the loss gradient on the images, the statistics and the sample for `groups` groups of views."""
    cameras = orbit(VIEWS * groups, (8, 8))
    image = torch.randn(VIEWS * groups, 8, 8, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sample = guidance.sample(
        cameras.view_index, PHASE, torch.Generator().manual_seed(seed), cameras.world_to_clip
    )
    loss, stats = guidance(image, sample, PHASE)
    loss.backward()
    return image.grad, stats, sample


def test_the_views_of_an_object_have_the_same_time_and_different_noise(prior):
    _, _, sample = distilled(guide(prior), groups=3)
    times = sample.timesteps.view(3, VIEWS)
    assert (times == times[:, :1]).all() and len(times.unique()) > 1
    assert not torch.equal(sample.noise[0], sample.noise[1])


def test_low_memory_computes_one_object_at_a_time(prior, monkeypatch):
    calls, predict = [], prior.predict_noise
    monkeypatch.setattr(
        prior, "predict_noise", lambda noisy, *others: calls.append(len(noisy)) or predict(noisy, *others)
    )
    whole, pieces = (distilled(guide(prior, low_memory=low)) for low in (False, True))
    assert calls == [2 * 2 * VIEWS, 2 * VIEWS, 2 * VIEWS]
    assert torch.allclose(whole[0], pieces[0], atol=1e-5) and whole[0].abs().max() > 1e-3
    for name, value in whole[1].items():
        assert torch.allclose(value, pieces[1][name], rtol=1e-4), name


def test_prompts_of_a_prior_of_several_views_have_no_view_words(prior, monkeypatch, caplog):
    prompts = []
    monkeypatch.setattr(
        prior, "embed", lambda texts: prompts.extend(texts) or torch.zeros(len(texts), 77, 32)
    )
    with caplog.at_level(logging.INFO):
        guidance = guide(prior, add_directional_text=True, perp_neg=True)
    assert prompts == ["a car", "a car", "a car", "bad"]
    assert not guidance.config.perp_neg and "add_directional_text has no effect" in caplog.text


def test_the_gradient_is_that_of_the_denoiser_with_the_cameras(prior):
    guidance = guide(prior)
    found, _, sample = distilled(guidance)
    image = torch.randn(2 * VIEWS, 8, 8, 4, generator=torch.Generator().manual_seed(1)).permute(0, 3, 1, 2)
    abar = prior.alphas_cumprod[sample.timesteps][:, None, None, None]
    noisy = abar.sqrt() * image + (1 - abar).sqrt() * sample.noise
    camera = camera_matrices(orbit(2 * VIEWS, (8, 8)).world_to_clip)
    negative, text = (
        noise_of(prior.unet, noisy, sample.timesteps, text, camera)
        for text in (guidance.negative.expand(2 * VIEWS, -1, -1), guidance.text[:1].expand(2 * VIEWS, -1, -1))
    )
    expected = damped(abar) * (negative + 2 * (text - negative) - sample.noise)
    assert torch.allclose(found.permute(0, 3, 1, 2), expected, atol=1e-5)


def test_vsd_starts_from_the_prior_and_trains_with_both_cameras(prior):
    guidance = guide(prior, score="vsd")
    noisy, time, _, _ = inputs(VIEWS)
    conditions = ViewConditions(orbit(VIEWS, (8, 8)).world_to_clip)
    text = guidance.text[:1].expand(VIEWS, -1, -1)
    expected = prior.predict_noise(noisy, time, text, conditions)
    lora = guidance.lora
    found = prior.predict_lora_noise(lora, noisy, time, text, conditions)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not any(".own." in name for name in lora.trained())
    distilled(guidance)
    assert all(p.grad is not None for name, p in lora.trained().items() if "lora_B" in name)
    assert lora.unet.class_embedding.added.last.weight.grad.abs().max() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 2])
def test_cuda_graphs_and_fused_blocks_agree_with_the_cpu(folder, groups):
    found = {}
    for device in ("cpu", "cuda"):
        prior = StableDiffusion.from_pretrained(str(folder), torch.device(device))
        text = prior.embed(["a car"] * VIEWS * groups)
        for turn in range(3):
            noisy, time, _, _ = (x.to(device) for x in inputs(VIEWS * groups, seed=turn))
            cameras = orbit(VIEWS * groups, (8, 8), elevation_degrees=10.0 * turn).world_to_clip
            answer = prior.predict_noise(noisy, time, text, ViewConditions(cameras.to(device)))
            found[device, turn] = answer.cpu()
        if device == "cuda":
            assert len(prior._denoise.cache.recordings) == 1
            assert any(isinstance(module, FusedTransformer) for module in prior.unet.modules())
    for turn in range(3):
        error = (found["cuda", turn] - found["cpu", turn]).norm() / found["cpu", turn].norm()
        assert error < 0.02


def test_the_camera_changes_the_prediction(joint):
    noisy, time, text, camera = inputs(VIEWS)
    assert isinstance(joint.class_embedding, nn.Module)
    found = [noise_of(joint, noisy, time, text, factor * camera) for factor in (1.0, -1.0)]
    assert not torch.allclose(*found, atol=1e-3)


def test_missing_weights_of_the_camera_embedding_are_rejected(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "model"
    shutil.copytree(folder, broken)
    (file,) = (broken / "unet").glob("*.safetensors")
    weights = {name: v for name, v in load_file(file).items() if "class_embedding.linear_1" not in name}
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="2 weights of its unet are missing in .*class_embedding") as error:
        StableDiffusion.from_pretrained(str(broken), CPU)
    assert "\n" not in str(error.value)


def test_a_lora_file_changes_all_views(folder, prior, tmp_path):
    from safetensors.torch import save_file

    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v"
    generator = torch.Generator().manual_seed(6)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "style.safetensors")
    other = StableDiffusion.from_pretrained(str(folder), CPU, [str(tmp_path / "style.safetensors")])
    noisy, time, _, _ = inputs(VIEWS)
    text, conditions = prior.embed(["a car"] * VIEWS), ViewConditions(orbit(VIEWS, (8, 8)).world_to_clip)
    found, expected = (model.predict_noise(noisy, time, text, conditions) for model in (other, prior))
    assert ((found - expected).flatten(1).abs().amax(1) > 1e-4).all()
