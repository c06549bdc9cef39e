"""Test readers that tests/test_fuzz.py does not cover, each with STRESS_FILES (2,000) damaged files.

Every file must be read, or rejected with a one-line error that contains the file name.
"""

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from geometry.tet_grid import load_tet_grid
from training.report.curves import groups, phase_times, read_log

pytestmark = pytest.mark.slow

FILES = int(os.environ.get("STRESS_FILES", "2000"))


def damaged(content, chance):
    """Return the content with one to three random edits."""
    content = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(content) + 1)
        piece = bytes(chance.randrange(256) for _ in range(chance.choice([1, 1, 4, 16])))
        kind = chance.choice(["set", "set", "insert", "delete", "cut"])
        if kind == "set":
            content[at : at + len(piece)] = piece
        elif kind == "insert":
            content[at:at] = piece
        elif kind == "delete":
            del content[at : at + len(piece)]
        elif len(content) > 1:
            del content[at:]
    return bytes(content)


def try_files(path, read, key):
    """Read FILES damaged copies of `path`, and return how many of them were rejected."""
    whole, chance, rejected = path.read_bytes(), random.Random(key), 0
    for number in range(FILES):
        path.write_bytes(damaged(whole, chance))
        try:
            read(path)
        except (ValueError, OSError) as error:
            rejected += 1
            assert str(path) in str(error) and len(str(error).splitlines()) == 1, (number, error)
    print(f"{key}: {FILES} files, {rejected} rejected in one line, no other error")
    return rejected


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_tet_grids(save, tmp_path):
    path = tmp_path / "grid.npz"
    save(
        path,
        vertices=np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]], np.float32),
        indices=np.array([[0, 1, 2, 3]]),
    )
    assert try_files(path, lambda file: load_tet_grid(file, 2.0, 16), "tet_grid_file") > 0


def test_loras(model_folder, tmp_path):
    from sd.loading.lora import apply_lora
    from sd.loading.weights import load_parts

    parts = load_parts(str(model_folder), torch.device("cpu"))
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    path = tmp_path / "style.safetensors"
    pair = {f"{layer}.lora_A.weight": torch.ones(2, 32), f"{layer}.lora_B.weight": torch.ones(32, 2)}
    save_file(pair, path, metadata={"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2})})
    assert try_files(path, lambda file: apply_lora(parts.unet, parts.text_encoder, [str(file)]), "lora") > 0


def test_model_settings(model_folder, tmp_path):
    """Fewer files are tested than in the other tests, because a model is loaded for each of them."""
    from sd.loading.weights import load_parts

    model = shutil.copytree(model_folder, tmp_path / "model")
    chance, rejected = random.Random(3), 0
    files = sorted(path for path in model.rglob("*.json"))
    for _ in range(max(1, FILES // 20)):
        path = chance.choice(files)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, chance))
        try:
            load_parts(str(model), torch.device("cpu"))
        except (ValueError, OSError) as error:
            rejected += 1
            assert str(model) in str(error) and len(str(error).splitlines()) == 1, error
        path.write_bytes(whole)
    print(f"model settings: {max(1, FILES // 20)} files, {rejected} rejected in one line")


def test_logs(tmp_path):
    """A damaged log raises no error: the report shows the lines that are still readable."""
    path, chance = tmp_path / "log.jsonl", random.Random(4)
    line = {"step": 1, "phase": "coarse", "seconds": 1.5, "loss": 0.25}
    whole = "".join(json.dumps({**line, "step": step}) + "\n" for step in range(1, 30)).encode()
    for _ in range(FILES):
        path.write_bytes(damaged(whole, chance))
        records = read_log(path)
        assert len(phase_times(records)) <= len(records) and len(groups(records)) <= len(records)
        assert len(records) >= 10 or len(path.read_bytes()) < len(whole)
