"""Test checkpoints in MVDream's two public layouts: a single file, and a folder with the original unet."""

import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from original_model import original_shapes, random_weights
from safetensors.torch import load_file, save_file
from toy_model import write_tokenizer

from render.camera import orbit
from sd.conditions import ViewConditions
from sd.loading import convert_pt
from sd.loading import ldm_format as layout
from sd.loading.check_settings import model_views
from sd.loading.hub import resolve_model
from sd.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mvdream")
    write_tokenizer(folder / "tokenizer")
    save_file(random_weights("small mvdream"), folder / "sd-v2.1-base-4view.safetensors")
    return folder / "sd-v2.1-base-4view.safetensors"


@pytest.fixture(scope="module")
def prior(file):
    return StableDiffusion.from_pretrained(str(file), CPU, prediction="epsilon")


@pytest.fixture(scope="module")
def folder(file, prior, tmp_path_factory):
    """Return a folder with the model of `file`, whose denoiser is in the layout of MultiViewUNetModel."""
    from diffusers import AutoencoderKL, DDIMScheduler

    folder, weights = tmp_path_factory.mktemp("folder") / "model", load_file(file)
    unet = {name: value.contiguous() for name, value in layout.part(weights, layout.UNET).items()}
    (folder / "unet").mkdir(parents=True)
    save_file(unet, folder / "unet/diffusion_pytorch_model.safetensors", {"format": "pt"})
    settings = {"_class_name": "MultiViewUNetModel", "image_size": 32, "in_channels": 4, "out_channels": 4}
    settings |= {"model_channels": 64, "num_head_channels": 64, "context_dim": 64, "camera_dim": 16}
    (folder / "unet/config.json").write_text(json.dumps(settings | {"channel_mult": [1, 1, 2, 2]}))
    prior.text_encoder.save_pretrained(folder / "text_encoder")
    vae = AutoencoderKL(**layout.encoder_config(weights))
    vae.load_state_dict(layout.encoder_weights(weights), strict=False)
    vae.save_pretrained(folder / "vae")
    shutil.copytree(file.parent / "tokenizer", folder / "tokenizer")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDIMScheduler(**schedule, clip_sample=False).save_pretrained(folder / "scheduler")
    return folder


def test_every_tensor_of_the_full_size_maps_one_to_one():
    shapes = original_shapes("mvdream")
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=32, **layout.denoiser_config(weights))
    named = layout.denoiser_weights(weights)
    assert len(named) == len(layout.part(weights, layout.UNET)) == 690
    unet.load_state_dict(named, strict=True, assign=True)
    assert tuple(unet.class_embedding.linear_1.weight.shape) == (1280, 16)
    # The first number is the parameter count of SD 2.1's denoiser. The camera embedding has
    # 16 · 1280 + 1280 + 1280² + 1280 parameters.
    assert sum(p.numel() for p in unet.parameters()) == 865_910_724 + 1_661_440


def test_the_camera_embedding_is_not_exchanged(file):
    weights = load_file(file)
    named = layout.denoiser_weights(weights)
    for ours, theirs in (("linear_1", "0"), ("linear_2", "2")):
        for kind in ("weight", "bias"):
            original = weights[f"{layout.UNET}camera_embed.{theirs}.{kind}"]
            assert torch.equal(named[f"class_embedding.{ours}.{kind}"], original)


def predict(prior, views=4):
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(views, 4, 8, 8, generator=generator)
    conditions = ViewConditions(orbit(views, (8, 8)).world_to_clip)
    return prior.predict_noise(noisy, torch.full((views,), 300), prior.embed(["a"] * views), conditions)


def test_a_file_is_a_prior_of_four_views(file, prior):
    assert (prior.views, prior.takes_cameras, prior.latent_size, prior.image_size) == (4, True, 32, 256)
    assert model_views(file) == 4
    assert predict(prior).isfinite().all()


def test_the_prediction_type_of_a_file_without_metadata_is_measured(file):
    assert StableDiffusion.from_pretrained(str(file), CPU).prediction_type in ("epsilon", "v_prediction")


def test_a_folder_with_the_original_names_is_the_same_prior(folder, prior):
    loaded = StableDiffusion.from_pretrained(resolve_model(str(folder)), CPU)
    assert (loaded.views, loaded.latent_size, loaded.image_size) == (4, 32, 256)
    assert model_views(folder) == 4
    assert torch.allclose(predict(loaded), predict(prior), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "taken", "words"),
    [
        ({"ip_dim": 16}, None, "ip_dim is set; a prior that takes an image"),
        ({}, "camera_embed.0.weight", "it lacks camera_embed.0.weight"),
        ({}, "camera_embed.2.bias", "linear_2.bias"),
    ],
)
def test_other_folders_are_refused_in_one_line(folder, tmp_path, settings, taken, words):
    broken = tmp_path / "model"
    shutil.copytree(folder, broken)
    path = broken / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    if taken:
        path = broken / "unet/diffusion_pytorch_model.safetensors"
        save_file({name: value for name, value in load_file(path).items() if name != taken}, path)
    with pytest.raises(ValueError, match=words) as error:
        StableDiffusion.from_pretrained(str(broken), CPU)
    assert "\n" not in str(error.value)


def test_the_original_pt_file_is_converted(file, tmp_path, capsys):
    weights = load_file(file)
    weights["shared"] = weights["betas"][:10]
    torch.save(weights, tmp_path / "original.pt")
    target = tmp_path / "new/model.safetensors"
    assert convert_pt.main([str(tmp_path / "original.pt"), str(target)]) == 0
    found = load_file(target)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    torch.save({"state_dict": {"a": torch.ones(2)}, "step": 3}, tmp_path / "nested.ckpt")
    assert convert_pt.main([str(tmp_path / "nested.ckpt"), str(target)]) == 0
    assert load_file(target).keys() == {"a"}


class Hostile:
    def __reduce__(self):
        return (open, ("hacked", "w"))


def test_a_pt_file_with_code_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(1), "b": Hostile()}, "bad.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], "list.pt")
    for name, words in {
        "bad.pt": "without running its code",
        "empty.pt": "empty.pt",
        "list.pt": "no tensors by name",
        "missing.pt": "missing.pt",
    }.items():
        with pytest.raises(SystemExit) as stop:
            convert_pt.main([name, "out.safetensors"])
        assert stop.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "hacked").exists() and not (tmp_path / "out.safetensors").exists()


def test_a_damaged_file_counts_as_one_view_until_it_is_loaded(file, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:100])
    assert model_views(cut) == 1
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        StableDiffusion.from_pretrained(str(cut), CPU)


def test_wrong_views_in_a_folder_are_refused_before_loading(model_folder, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(model_folder, broken)
    path = broken / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "views": 4}))
    with pytest.raises(ValueError, match="sd_model = .*views = 4 needs class_embed_type"):
        model_views(broken)
    with pytest.raises(ValueError, match="views = 4 needs class_embed_type") as error:
        StableDiffusion.from_pretrained(str(broken), CPU)
    assert "\n" not in str(error.value)
