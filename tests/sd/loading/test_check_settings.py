"""Test that wrong values in a model's settings files raise a one-line error before the first step."""

import json
import shutil
import time

import pytest
import torch

from sd.loading.weights import load_parts

TOKENIZER, UNET = "tokenizer/tokenizer_config.json", "unet/config.json"
# Each entry is (file, key, value, part of the message). The value None means that the key is removed.
WRONG = [
    (TOKENIZER, "model_max_length", -1, "model_max_length = -1"),
    ("categories.json", None, [1, 2], "categories.json must be a list of texts"),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 0, "num_train_timesteps = 0"),
    (UNET, "sample_size", 10**9, "sample_size = 1000000000 is too large"),
    (UNET, "sample_size", "x", "sample_size = 'x'"),
    (UNET, "sample_size", [64, 48], "only square latents"),
    (UNET, "sample_size", 0, "sample_size = 0"),
    ("vae/config.json", "scaling_factor", "x", "scaling_factor = 'x'"),
    (UNET, "layers_per_block", 10**6, "layers_per_block = 1000000 is too large"),
    ("text_encoder/config.json", "num_hidden_layers", 10**6, "num_hidden_layers = 1000000 is too large"),
    ("text_encoder/config.json", None, [], "config.json"),
]


@pytest.fixture
def model(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


def change(model, file, key, value):
    path = model / file
    if key is None:
        path.write_text(json.dumps(value))
        return
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


@pytest.mark.parametrize(("file", "key", "value", "message"), WRONG)
def test_sd_model_settings(model, file, key, value, message):
    """Each wrong setting raises a ValueError. Its message is one line that contains the model name."""
    change(model, file, key, value)
    started = time.monotonic()
    with pytest.raises(ValueError) as error:
        load_parts(str(model), torch.device("cpu"))
    assert str(model) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)
    # The error must be raised early: building a million layers would take minutes.
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("value", ["x", None, 10**30])
def test_missing_token_limit_is_taken_from_the_text_encoder(model, value):
    change(model, TOKENIZER, "model_max_length", value)
    parts = load_parts(str(model), torch.device("cpu"))
    assert parts.tokenizer.model_max_length == 77
    assert parts.tokenizer("a" * 500, truncation=True).input_ids.__len__() == 77


def test_tokenizer_of_another_model_is_rejected(model):
    path = model / "tokenizer" / "vocab.json"
    vocabulary = json.loads(path.read_text())
    path.write_text(json.dumps({**vocabulary, "extra</w>": 5000}))
    with pytest.raises(ValueError, match="the tokenizer has the id 5000"):
        load_parts(str(model), torch.device("cpu"))


def test_empty_merges_log_a_warning(model, caplog):
    (model / "tokenizer" / "merges.txt").write_text("")
    load_parts(str(model), torch.device("cpu"))
    assert "merges.txt is empty, so words are split into letters" in caplog.text
