"""Compare LoRA files in several formats with the definition: a low-rank branch parallel to each layer."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from configs.schema import parse_config
from sd.loading.hub import resolve_model
from sd.loading.lora import apply_lora, parse_lora
from sd.loading.weights import load_parts
from sd.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")
RANK, ALPHA, SCALE = 3, 6.0, 0.5
QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONVOLUTION = "up_blocks.0.resnets.1.conv1"
TEXT = "encoder.layers.1.self_attn.v_proj"


@pytest.fixture(scope="module")
def parts(model_folder):
    return load_parts(resolve_model(str(model_folder)), CPU)


def layer_of(parts, name):
    text = parts.text_encoder
    if name == TEXT:
        return getattr(text, "text_model", text).get_submodule(name)
    return parts.unet.get_submodule(name)


@pytest.fixture(scope="module")
def products(parts):
    """Return {layer name: (down, up)} for the tested layers."""
    generator = torch.Generator().manual_seed(4)
    found = {}
    for name in (QUERY, OUT, CONVOLUTION, TEXT):
        shape = layer_of(parts, name).weight.shape
        down = torch.randn(RANK, *shape[1:], generator=generator) * 0.2
        up = torch.randn(shape[0], RANK, *(1 for _ in shape[2:]), generator=generator) * 0.2
        found[name] = (down, up)
    return found


def with_branches(parts, products, factor):
    """Return copies of the parts whose layers compute W x + factor up(down(x)), the definition of LoRA."""
    parts = copy.deepcopy(parts)
    for name, (down, up) in products.items():

        def branch(layer, inputs, output, down=down, up=up):
            if down.ndim == 2:
                return output + factor * F.linear(F.linear(inputs[0], down), up)
            middle = F.conv2d(inputs[0], down, stride=layer.stride, padding=layer.padding)
            return output + factor * F.conv2d(middle, up)

        layer_of(parts, name).register_forward_hook(branch)
    return parts


def text_and_noise(parts):
    prior = StableDiffusion(parts, CPU)
    text = prior.embed(["a car"])
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return text, prior.predict_noise(noisy, torch.tensor([300]), text)


def kohya(products, path):
    tensors = {}
    for name, (down, up) in products.items():
        start = "lora_te_text_model_" if name == TEXT else "lora_unet_"
        flat = start + name.replace(".", "_")
        tensors[f"{flat}.lora_down.weight"] = down
        tensors[f"{flat}.lora_up.weight"] = up
        tensors[f"{flat}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, path)
    return ALPHA / RANK


def diffusers(products, path):
    """Write a LoRA file in the format of diffusers' pipelines, and return the factor of its products.

    The name of a tensor consists of the model part, the layer name and peft's suffix. Alpha is in the
    metadata.
    """
    tensors = {}
    for name, (down, up) in products.items():
        full = f"text_encoder.text_model.{name}" if name == TEXT else f"unet.{name}"
        tensors[f"{full}.lora_A.weight"], tensors[f"{full}.lora_B.weight"] = down, up
    alphas = {"unet.lora_alpha": ALPHA, "text_encoder.lora_alpha": ALPHA, "unet.r": RANK}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(alphas)})
    return ALPHA / RANK


def earlier_diffusers(products, path):
    """Write a LoRA file in the format that diffusers' training scripts used before peft.

    Attention layers have the names of their attention processors. The file contains no alpha.
    """
    tensors = {}
    for name, (down, up) in products.items():
        if name in (QUERY, OUT):
            full, _, layer = f"unet.{name.removesuffix('.0')}".rpartition(".")
            stem = f"{full}.processor.{layer}_lora"
        else:
            stem = (
                f"text_encoder.text_model.{name}.lora_linear_layer" if name == TEXT else f"unet.{name}.lora"
            )
        tensors[f"{stem}.down.weight"], tensors[f"{stem}.up.weight"] = down, up
    save_file(tensors, path)
    return 1.0


def peft(products, path):
    tensors = {}
    for name, (down, up) in products.items():
        if name != TEXT:
            tensors[f"base_model.model.{name}.lora_A.weight"] = down
            tensors[f"base_model.model.{name}.lora_B.weight"] = up
    save_file(tensors, path)
    path.with_name("adapter_config.json").write_text(json.dumps({"lora_alpha": ALPHA, "r": RANK}))
    return ALPHA / RANK


def test_peft_adapters_of_the_text_encoder(parts, products, tmp_path):
    """peft's layer names of a CLIPTextModel are supported with and without the prefix text_model."""
    down, up = products[TEXT]
    used, merged = {TEXT: products[TEXT]}, []
    for number, lead in enumerate(("text_model.", "")):
        path = tmp_path / str(number) / "adapter_model.safetensors"
        path.parent.mkdir()
        stem = f"base_model.model.{lead}{TEXT}"
        save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, path)
        path.with_name("adapter_config.json").write_text(json.dumps({"lora_alpha": ALPHA, "r": RANK}))
        model = copy.deepcopy(parts)
        apply_lora(model.unet, model.text_encoder, [str(path)])
        merged.append(text_and_noise(model))
    expected = text_and_noise(with_branches(parts, used, ALPHA / RANK))
    for found in merged:
        for got, wanted in zip(found, expected, strict=True):
            assert torch.allclose(got, wanted, atol=1e-5)


def test_text_encoder_names_of_diffusers_before_0_18(parts, tmp_path):
    """Diffusers before 0.18 called the projections of the text encoder to_q, to_k, to_v and to_out."""
    down, up = torch.ones(1, 32) * 0.1, torch.ones(32, 1)
    changed = copy.deepcopy(parts)
    stem = "text_encoder.text_model.encoder.layers.0.self_attn"
    names = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
    tensors = {}
    for name in names:
        tensors[f"{stem}.{name}_lora.down.weight"] = down.clone()
        tensors[f"{stem}.{name}_lora.up.weight"] = up.clone()
    path = tmp_path / "old.safetensors"
    save_file(tensors, path)
    apply_lora(changed.unet, changed.text_encoder, [str(path)])
    before, after = (dict(model.text_encoder.named_parameters()) for model in (parts, changed))
    for name in names.values():
        (key,) = (key for key in before if key.endswith(f"layers.0.self_attn.{name}.weight"))
        assert torch.allclose(after[key] - before[key], up @ down, atol=1e-6)


@pytest.mark.parametrize("dialect", [kohya, diffusers, earlier_diffusers, peft])
@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_merged_weights_equal_separate_branches(parts, products, tmp_path, dialect, scale):
    path = tmp_path / "style.safetensors"
    factor = dialect(products, path)
    used = {name: pair for name, pair in products.items() if dialect is not peft or name != TEXT}
    merged = copy.deepcopy(parts)
    apply_lora(merged.unet, merged.text_encoder, [f"{path}:{scale}" if scale != 1 else str(path)])
    found, expected = text_and_noise(merged), text_and_noise(with_branches(parts, used, factor * scale))
    plain = text_and_noise(copy.deepcopy(parts))
    for got, wanted, before in zip(found, expected, plain, strict=True):
        assert torch.allclose(got, wanted, atol=1e-5)
        assert dialect is peft or not torch.allclose(wanted, before, atol=1e-3)


def test_several_files_add_up(parts, products, tmp_path):
    path = tmp_path / "style.safetensors"
    kohya(products, path)
    once, twice = copy.deepcopy(parts), copy.deepcopy(parts)
    apply_lora(once.unet, once.text_encoder, [str(path)])
    apply_lora(twice.unet, twice.text_encoder, [f"{path}:0.25", f"{path}:.75"])
    for a, b in zip(text_and_noise(once), text_and_noise(twice), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_updates_of_half_precision_weights_are_computed_in_float32(parts, tmp_path):
    half = copy.deepcopy(parts)
    half.unet.half()
    weight = half.unet.get_submodule(QUERY).weight
    before = weight.detach().float().clone()
    down, up = torch.full((1, 32), 1e-3), torch.full((32, 1), 1e-3)
    path = tmp_path / "small.safetensors"
    save_file({f"unet.{QUERY}.lora_A.weight": down, f"unet.{QUERY}.lora_B.weight": up}, path)
    apply_lora(half.unet, half.text_encoder, [f"{path}:1000"])
    assert weight.dtype == torch.float16
    assert torch.allclose(weight.float() - before, torch.full_like(before, 1e-3), atol=2e-4)


def test_from_pretrained_takes_files(model_folder, parts, products, tmp_path):
    path = tmp_path / "style.safetensors"
    factor = kohya(products, path)
    prior = StableDiffusion.from_pretrained(str(model_folder), CPU, lora=[str(path)])
    expected, _ = text_and_noise(with_branches(parts, products, factor))
    assert torch.allclose(prior.embed(["a car"]), expected, atol=1e-5)


WRONG = {
    "not a layer of this model": {"lora_unet_nowhere.lora_down.weight": (3, 32)},
    "one of its two matrices is missing": {f"unet.{QUERY}.lora_A.weight": (3, 32)},
    "another model": {f"unet.{QUERY}.lora_A.weight": (3, 64), f"unet.{QUERY}.lora_B.weight": (32, 3)},
    "not LoHa": {"lora_unet_x.hada_w1_a": (3, 32)},
    "and peft, but not LoHa, LoKr or DoRA": {"lora_unet_x.dora_scale": (3,)},
    "adapter_config.json": {f"base_model.model.{QUERY}.lora_A.weight": (3, 32)},
    "contains no layers": {},
}


@pytest.mark.parametrize("words", WRONG)
def test_unsupported_files_give_a_one_line_error(parts, tmp_path, words):
    path = tmp_path / "wrong.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in WRONG[words].items()}, path)
    with pytest.raises(ValueError, match=words) as error:
        apply_lora(copy.deepcopy(parts.unet), copy.deepcopy(parts.text_encoder), [str(path)])
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_unsupported_peft_settings_are_rejected(parts, products, tmp_path):
    path = tmp_path / "style.safetensors"
    peft(products, path)
    path.with_name("adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "use_rslora": True}))
    with pytest.raises(ValueError, match="use_rslora"):
        apply_lora(parts.unet, parts.text_encoder, [str(path)])


def test_parse_lora_entries(tmp_path):
    (tmp_path / "a:b.safetensors").touch()
    assert parse_lora(f"{tmp_path}/a:b.safetensors:0.7") == (tmp_path / "a:b.safetensors", 0.7)
    assert parse_lora(f"{tmp_path}/a:b.safetensors:-1") == (tmp_path / "a:b.safetensors", -1)
    assert parse_lora(f"{tmp_path}/a:b.safetensors") == (tmp_path / "a:b.safetensors", 1)
    with pytest.raises(FileNotFoundError, match="lora.*none.safetensors"):
        parse_lora("none.safetensors:2")
    (tmp_path / "a.pt").touch()
    with pytest.raises(ValueError, match="lora.*safetensors"):
        parse_lora(str(tmp_path / "a.pt"))


def test_lora_key_accepts_a_path_or_a_list():
    one = parse_config({"out_dir": "x", "lora": "a.safetensors"}, "x")
    assert one.guidance.lora == ("a.safetensors",)
    two = parse_config({"out_dir": "x", "lora": ["a.safetensors", "b.safetensors:0.5"]}, "x")
    assert two.guidance.lora == ("a.safetensors", "b.safetensors:0.5")
    for wrong in (3, [3], "", [""], {"a": 1}):
        with pytest.raises(ValueError, match='"lora".*path'):
            parse_config({"out_dir": "x", "lora": wrong}, "x")


def lora_file(folder, tensors=None, metadata=None, layer=QUERY):
    path = folder / "style.safetensors"
    down, up = torch.zeros(RANK, 32), torch.zeros(32, RANK)
    pair = {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
    save_file(pair if tensors is None else tensors, path, metadata=metadata)
    return path


def named(value, ending="lora_A.weight"):
    return f"unet.{QUERY}.{ending}", value


WRONG_TENSORS = {
    "rank 0": dict([named(torch.zeros(0, 32)), named(torch.zeros(32, 0), "lora_B.weight")]),
    "scalars": dict([named(torch.zeros(())), named(torch.zeros(()), "lora_B.weight")]),
    "NaN": dict([named(torch.full((3, 32), torch.nan)), named(torch.zeros(32, 3), "lora_B.weight")]),
    "alpha of 7 numbers": dict(
        [named(torch.zeros(3, 32)), named(torch.zeros(32, 3), "lora_B.weight"), named(torch.ones(7), "alpha")]
    ),
}
WRONG_METADATA = ["[1]", "[" * 100_000, "{bad", "null", '"x"']
WRONG_METADATA += [json.dumps({"unet.lora_alpha": value}) for value in (None, [1], "x", {})]


@pytest.mark.parametrize("tensors", WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_lora_settings_wrong_tensors(parts, tmp_path, tensors):
    """Each tensor that is not part of a low-rank product raises a one-line error with the file name."""
    path = lora_file(tmp_path, tensors)
    with pytest.raises(ValueError) as error:
        apply_lora(copy.deepcopy(parts.unet), parts.text_encoder, [str(path)])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", WRONG_METADATA, ids=[text[:24] for text in WRONG_METADATA])
def test_lora_settings_wrong_metadata(parts, tmp_path, text):
    """Metadata of the wrong type raises a one-line error with the file name.

    The metadata is in the LoRA file or in the JSON file next to it.
    """
    path = lora_file(tmp_path, metadata={"lora_adapter_metadata": text})
    with pytest.raises(ValueError) as error:
        apply_lora(copy.deepcopy(parts.unet), parts.text_encoder, [str(path)])
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    down, up = (torch.zeros(RANK, 32), torch.zeros(32, RANK))
    prefix = f"base_model.model.{QUERY}"
    path = lora_file(tmp_path, {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up})
    (tmp_path / "adapter_config.json").write_text(text.replace("unet.", ""))
    with pytest.raises(ValueError) as error:
        apply_lora(copy.deepcopy(parts.unet), parts.text_encoder, [str(path)])
    assert str(path) in str(error.value) and "\n" not in str(error.value)
