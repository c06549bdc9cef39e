"""Compare the prior with diffusers' pipeline components, on a toy model in the diffusers layout."""

import gc
import shutil
import weakref

import pytest
import torch

from sd import stable_diffusion
from sd.guidance import Guidance, GuidanceConfig
from sd.loading.hub import resolve_model
from sd.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prior(model_folder):
    return StableDiffusion.from_pretrained(str(model_folder), CPU)


def test_sizes_come_from_the_config_files(prior):
    assert (prior.latent_channels, prior.latent_size, prior.image_size) == (4, 8, 32)
    assert prior.scaling_factor == 0.5
    assert not any(parameter.requires_grad for parameter in prior.parameters())


def test_schedule_equals_the_scheduler_of_diffusers(prior, model_folder):
    from diffusers import DDPMScheduler

    expected = DDPMScheduler.from_pretrained(model_folder, subfolder="scheduler").alphas_cumprod
    assert torch.allclose(prior.alphas_cumprod, expected, rtol=1e-5)
    assert 0.27 < prior.alphas_cumprod[500] < 0.29  # value of Stable Diffusion's scaled-linear schedule


def test_encode_equals_the_vae_of_diffusers(prior, model_folder):
    from diffusers import AutoencoderKL

    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = AutoencoderKL.from_pretrained(model_folder, subfolder="vae")
    with torch.no_grad():
        distribution = vae.encode(images).latent_dist
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = (distribution.mean + distribution.std * noise) * 0.5
    assert torch.allclose(prior.encode(images, noise), expected, atol=1e-5)


def test_encode_is_differentiable(prior):
    images = torch.zeros(1, 3, 32, 32, requires_grad=True)
    prior.encode(images, torch.zeros(1, 4, 8, 8)).square().sum().backward()
    assert images.grad.abs().max() > 0


def test_velocity_is_converted_to_noise(velocity_folder):
    from diffusers import DDPMScheduler, UNet2DConditionModel

    prior = StableDiffusion.from_pretrained(str(velocity_folder), CPU)
    scheduler = DDPMScheduler.from_pretrained(velocity_folder, subfolder="scheduler")
    unet = UNet2DConditionModel.from_pretrained(velocity_folder, subfolder="unet")
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    timestep = torch.tensor([400])
    text = prior.embed(["a car"])
    predicted = prior.predict_noise(noisy, timestep, text)
    with torch.no_grad():
        velocity = unet(noisy, timestep, text).sample
    # diffusers computes x0 from v. The expected noise follows from x_t and x0.
    clean = scheduler.step(velocity, 400, noisy).pred_original_sample
    abar = scheduler.alphas_cumprod[400]
    expected = (noisy - abar.sqrt() * clean) / (1 - abar).sqrt()
    assert torch.allclose(predicted, expected, atol=1e-4)


def test_embeddings_differ_and_long_prompts_are_truncated(prior):
    embedded = prior.embed(["a car", "a cat", "car " * 200])
    assert embedded.shape == (3, 77, 32)
    assert not torch.allclose(embedded[0], embedded[1])


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_incomplete_folder_names_the_missing_files(model_folder, tmp_path, part):
    broken = tmp_path / "model"
    shutil.copytree(model_folder, broken)
    shutil.rmtree(broken / part)
    with pytest.raises(FileNotFoundError, match=f"incomplete.*{part}/"):
        resolve_model(str(broken))


def test_missing_weight_files_are_named(model_folder, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(model_folder, broken)
    next((broken / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"unet/\*.safetensors"):
        resolve_model(str(broken))


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_missing_tokenizer_files_are_named(model_folder, tmp_path, file):
    broken = tmp_path / "model"
    shutil.copytree(model_folder, broken)
    (broken / "tokenizer" / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks tokenizer/{file}"):
        resolve_model(str(broken))


@pytest.mark.parametrize(
    "damaged",
    [
        "unet/*.safetensors",
        "vae/*.safetensors",
        "text_encoder/*.safetensors",
        "*/config.json",
        "tokenizer/vocab.json",
    ],
)
def test_damaged_files_give_a_one_line_error(model_folder, tmp_path, damaged):
    broken = tmp_path / "model"
    shutil.copytree(model_folder, broken)
    for file in broken.glob(damaged):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        StableDiffusion.from_pretrained(str(broken), CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("in_channels", 9), ("cross_attention_dim", 48)])
def test_inpainting_and_xl_models_are_rejected(model_folder, tmp_path, key, value):
    from diffusers import UNet2DConditionModel

    other = tmp_path / "model"
    shutil.copytree(model_folder, other)
    config = UNet2DConditionModel.load_config(model_folder, subfolder="unet")
    UNet2DConditionModel.from_config({**config, key: value}).save_pretrained(other / "unet")
    with pytest.raises(ValueError, match=f"unet .*{value}.*2.x is needed") as error:
        StableDiffusion.from_pretrained(str(other), CPU)
    assert "\n" not in str(error.value)


def test_download_contains_only_the_five_parts(model_folder, monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    needed = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json"]
    needed += ["vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    needed += ["tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"]
    others = ["v1-5-pruned.safetensors", "safety_checker/model.safetensors", "model_index.json"]
    others += [
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
    ]
    taken = []

    def list_files(hub_id, local_files_only, **patterns):
        taken.extend(filter_repo_objects(needed + others, **patterns))
        return str(model_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", list_files)
    assert resolve_model("someone/model") == str(model_folder)
    assert taken == needed


def test_unreachable_hub_id_names_the_fixes(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError) as error:
        resolve_model("stable-diffusion-2-1-base")
    message = str(error.value)
    for word in ("sd2-community", "Manojb", "mirror", "local folder", "HF_HUB_OFFLINE"):
        assert word in message
    assert "\n" not in message
    with pytest.raises(FileNotFoundError, match="no such folder"):
        resolve_model("./nowhere")


def test_small_prior_warns_of_unknown_prompts(model_folder, tmp_path, prior):
    assert (
        prior.unknown_prompt_warning("a hamburger") is None
    )  # Without categories.json, every prompt is accepted.
    small = tmp_path / "small"
    shutil.copytree(model_folder, small)
    (small / "categories.json").write_text('["mug", "ice cream cone"]')
    known = StableDiffusion.from_pretrained(str(small), CPU)
    assert known.unknown_prompt_warning("A red Mug on a table") is None
    assert known.unknown_prompt_warning("an ice cream cone") is None
    assert "mug, ice cream cone" in known.unknown_prompt_warning("a hamburger")


def take_weights_away(folder, part, names):
    from safetensors.torch import load_file, save_file

    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    taken = [key for key in weights if key.startswith(names)]
    save_file({key: value for key, value in weights.items() if key not in taken}, file, {"format": "pt"})
    return len(taken)


@pytest.mark.parametrize(
    ("part", "names"),
    [("unet", "conv_out."), ("vae", "encoder.conv_in."), ("text_encoder", "final_layer_norm.")],
)
def test_missing_weights_are_counted_and_rejected(model_folder, tmp_path, part, names):
    broken = tmp_path / "model"
    shutil.copytree(model_folder, broken)
    assert take_weights_away(broken, part, names) == 2
    with pytest.raises(ValueError, match=f"2 weights of its {part} are missing in .*{names}") as error:
        StableDiffusion.from_pretrained(str(broken), CPU)
    assert "\n" not in str(error.value)


def test_missing_decoder_is_accepted(model_folder, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(model_folder, broken)
    assert take_weights_away(broken, "vae", ("decoder.", "post_quant_conv.")) > 2
    StableDiffusion.from_pretrained(str(broken), CPU)


def test_older_attention_names_are_accepted(model_folder, tmp_path, prior):
    from safetensors.torch import load_file, save_file

    older = tmp_path / "model"
    shutil.copytree(model_folder, older)
    (file,) = (older / "vae").glob("*.safetensors")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    renamed = {}
    for key, value in weights.items():
        for new, old in names.items():
            key = key.replace(new, old)
        renamed[key] = value
    assert renamed.keys() != weights.keys()
    save_file(renamed, file, {"format": "pt"})
    loaded = StableDiffusion.from_pretrained(str(older), CPU)
    for (name, ours), theirs in zip(
        prior.vae.encoder.named_parameters(), loaded.vae.encoder.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_truncated_prompt_is_logged_once_with_its_end(prior, caplog):
    words = " ".join("abcdefghij"[k % 10] for k in range(75))
    prior.embed([words])
    assert not caplog.records
    prior.embed([f"{words} xyz", f"{words} q", "short"])
    (record,) = caplog.records
    message = record.getMessage()
    assert "2 of 3 prompts" in message and "the first has 80" in message and "77 tokens" in message
    assert "x" in message.partition("ignored:")[2] and "a" not in message.partition("ignored:")[2]


def test_a_text_encoder_in_the_published_layout_is_complete(model_folder, tmp_path, prior):
    """Published files have a prefix in every name, and a buffer that the class does not have."""
    from safetensors.torch import load_file, save_file

    published = tmp_path / "model"
    shutil.copytree(model_folder, published)
    (file,) = (published / "text_encoder").glob("*.safetensors")
    weights = {f"text_model.{name}": value for name, value in load_file(file).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, file, {"format": "pt"})
    loaded = StableDiffusion.from_pretrained(str(published), CPU)
    assert torch.equal(loaded.embed(["a car"]), prior.embed(["a car"]))


@pytest.mark.parametrize(("wanted", "able"), [(True, False), (False, True), (None, True), (None, False)])
def test_bfloat16_on_a_cpu_is_close_and_optional(model_folder, wanted, able, monkeypatch):
    monkeypatch.setattr(stable_diffusion, "has_bfloat16_instructions", lambda: able)
    whole = StableDiffusion.from_pretrained(str(model_folder), CPU)
    prior = StableDiffusion.from_pretrained(str(model_folder), CPU, cpu_bfloat16=wanted)
    generator = torch.Generator().manual_seed(0)
    side, image_side = whole.latent_size, whole.image_size
    noisy = torch.randn(2, whole.latent_channels, side, side, generator=generator)
    image = torch.rand(2, 3, image_side, image_side, generator=generator)
    answers = []
    for model in (whole, prior):
        text, shown = model.embed(["a", "b"]), image.clone().requires_grad_()
        latents = model.encode(shown, noisy)
        latents.square().sum().backward()
        answers.append([text, model.predict_noise(noisy, torch.tensor([3, 900]), text), latents, shown.grad])
    halves = wanted if wanted is not None else able
    for name, expected, found in zip(("text", "noise", "latents", "gradient"), *answers, strict=True):
        assert found.dtype == torch.float32
        error = (found - expected).norm() / expected.norm()
        assert (1e-4 if halves and name != "text" else 0) <= error < (0.05 if halves else 1e-9), name


def test_the_text_encoder_is_freed_after_the_prompts_are_embedded(model_folder):
    prior = StableDiffusion.from_pretrained(str(model_folder), torch.device("cpu"))
    encoder = weakref.ref(prior.text_encoder)
    guidance = Guidance(prior, GuidanceConfig(text="a car"), "low quality", torch.device("cpu"))
    prior.free_text_encoder()
    gc.collect()
    assert encoder() is None and guidance.text.shape[0] == 3
