"""Test the lookup of models with a fake hub: search order, hub cache and half-precision files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

import train
from sd.loading.hub import DEFAULT_MODEL, local_locations, resolve_model, weights_variant
from sd.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def half_folder(model_folder, tmp_path):
    """Return a folder with the toy model, whose weights are only in half-precision files."""
    folder = shutil.copytree(model_folder, tmp_path / "half")
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    for part, kind in (
        ("unet", UNet2DConditionModel),
        ("vae", AutoencoderKL),
        ("text_encoder", CLIPTextModel),
    ):
        module = kind.from_pretrained(model_folder, subfolder=part).half()
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        module.save_pretrained(folder / part, variant="fp16")
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Replace the hub with a fake hub that uses the download filters of the real client.

    Return the hub's models {id: folder}, to which a test adds models, and the list of requested ids.
    """
    import huggingface_hub

    repositories, requested = {}, []

    def download(hub_id, allow_patterns, ignore_patterns, local_files_only):
        requested.append(hub_id)
        if hub_id not in repositories:
            raise OSError("no route")
        source, target = repositories[hub_id], tmp_path / "cache" / hub_id
        names = [str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()]
        for name in filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return repositories, requested


@pytest.mark.parametrize(
    ("name", "order"),
    [
        (
            DEFAULT_MODEL,
            ["stabilityai", "sd2-community", "Manojb"],
        ),
        ("stabilityai/stable-diffusion-2-1-base", ["stabilityai", "sd2-community", "Manojb"]),
        ("stable-diffusion-v1-5", ["runwayml", "stable-diffusion-v1-5"]),
        ("runwayml/stable-diffusion-v1-5", ["runwayml", "stable-diffusion-v1-5"]),
        ("someone/model", ["someone"]),
    ],
)
def test_all_locations_are_tried_in_order_and_named(hub, name, order):
    _, requested = hub
    with pytest.raises(FileNotFoundError) as error:
        resolve_model(name)
    assert [hub_id.partition("/")[0] for hub_id in requested] == order
    for word in (*requested, "mirror", "local folder", "HF_HUB_OFFLINE", "OSError"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_local_folder_takes_precedence_over_the_hub(hub, model_folder, tmp_path):
    _, requested = hub
    shutil.copytree(model_folder, tmp_path / "data/stable-diffusion-2-1-base")
    assert resolve_model(DEFAULT_MODEL) == "data/stable-diffusion-2-1-base" and not requested


def test_incomplete_mirror_is_skipped_and_named(hub, model_folder, tmp_path):
    repositories, _ = hub
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    shutil.rmtree(broken / "vae")
    repositories["stabilityai/stable-diffusion-2-1-base"] = broken
    with pytest.raises(FileNotFoundError, match="stabilityai/.*incomplete, it lacks vae/config.json"):
        resolve_model(DEFAULT_MODEL)
    repositories["Manojb/stable-diffusion-2-1-base"] = model_folder
    assert "Manojb" in resolve_model(DEFAULT_MODEL)


def test_half_precision_is_downloaded_if_nothing_else_exists(hub, half_folder, model_folder, tmp_path):
    repositories, requested = hub
    repositories["someone/half"] = half_folder
    found = resolve_model("someone/half")
    assert requested == ["someone/half"] * 2
    StableDiffusion.from_pretrained(found, CPU)
    both = shutil.copytree(model_folder, tmp_path / "both")
    shutil.copytree(half_folder, both, dirs_exist_ok=True)
    repositories["someone/both"] = both
    found = resolve_model("someone/both")
    assert not list((tmp_path / "cache/someone/both").rglob("*fp16*")) and found.endswith("both")


def test_folder_with_half_precision_files_only_loads(half_folder, model_folder):
    assert {weights_variant(half_folder, part) for part in ("unet", "vae", "text_encoder")} == {"fp16"}
    assert weights_variant(model_folder, "unet") is None
    half = StableDiffusion.from_pretrained(str(half_folder), CPU)
    whole = StableDiffusion.from_pretrained(str(model_folder), CPU)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert torch.allclose(half.embed(["a car"]), whole.embed(["a car"]), atol=2e-2)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text, time = whole.embed(["a car"]), torch.tensor([500])
    predictions = [prior.predict_noise(noisy, time, text) for prior in (half, whole)]
    assert torch.allclose(*predictions, atol=2e-2) and not torch.equal(*predictions)


def test_local_locations_report_the_missing_files(hub, model_folder):
    repositories, _ = hub
    repositories["Manojb/stable-diffusion-2-1-base"] = model_folder
    assert list(local_locations(DEFAULT_MODEL).values()) == [
        "no such folder",
        "not in the hub cache",
        "not in the hub cache",
        None,
    ]
    assert local_locations("none.safetensors") == {"none.safetensors": "no such file"}


def test_missing_lora_is_rejected_at_startup(tmp_path, caplog, model_folder):
    config = tmp_path / "config.json"
    config.write_text(f'{{"out_dir": "{tmp_path}/run", "sd_model": "{model_folder}"}}')
    assert train.main(["--config", str(config), "--lora", "none.safetensors:0.5"]) == 2
    message = caplog.records[-1].getMessage()
    assert message.startswith("error: lora = 'none.safetensors:0.5'") and "\n" not in message
    assert not (tmp_path / "run").exists()


def test_a_shipped_model_is_found_from_any_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(resolve_model("data/tiny-sd")) == ROOT / "data/tiny-sd"
    assert local_locations("data/tiny-sd") == {"data/tiny-sd": None}


def test_a_model_in_the_current_directory_comes_before_the_shipped_one(tmp_path, monkeypatch, model_folder):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, tmp_path / "data/tiny-sd")
    assert resolve_model("data/tiny-sd") == "data/tiny-sd"


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors"], "fp16"),
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"], None),
        (["diffusion_pytorch_model.bf16.safetensors"], "bf16"),
        (["diffusion_pytorch_model.non_ema.safetensors"], "non_ema"),
        (["diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"], "fp16"),
    ],
)
def test_variant_from_file_names(tmp_path, names, variant):
    (tmp_path / "unet").mkdir()
    for name in names:
        (tmp_path / "unet" / name).touch()
    assert weights_variant(tmp_path, "unet") == variant


@pytest.mark.parametrize("variant", ["bf16", "fp16", "non_ema"])
def test_a_folder_with_one_variant_is_loaded(model_folder, tmp_path, variant):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    file.rename(file.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    loaded, plain = (StableDiffusion.from_pretrained(str(path), CPU) for path in (folder, model_folder))
    assert all(map(torch.equal, loaded.unet.state_dict().values(), plain.unet.state_dict().values()))


def test_weights_with_another_name_are_reported(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/weights.safetensors")
    with pytest.raises(FileNotFoundError) as error:
        resolve_model(str(folder))
    assert "unet/diffusion_pytorch_model.safetensors (there is weights.safetensors)" in str(error.value)


@pytest.mark.parametrize("value", ["absent", [8, 8]])
def test_latent_size_missing_or_given_as_a_pair(model_folder, tmp_path, value):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    for part, key in (("unet", "sample_size"), ("vae", "sample_size")):
        path = folder / part / "config.json"
        settings = json.loads(path.read_text())
        settings.pop(key, None)
        if part == "vae":
            settings[key] = 8 * 2 ** (len(settings["block_out_channels"]) - 1)
        elif value != "absent":
            settings[key] = value
        path.write_text(json.dumps(settings))
    assert StableDiffusion.from_pretrained(str(folder), CPU).latent_size == 8
