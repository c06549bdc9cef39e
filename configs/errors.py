"""The error class for invalid configs, and functions that make parts of an error message."""

import difflib
import json
from collections.abc import Iterable

from render.read_errors import printable

# Dict from the name of a key in other programs to the key's name in this program.
SYNONYMS = {
    "prompt": "text",
    "negative_prompt": "negative_text",
    "steps": "iter",
    "max_steps": "iter",
    "iters": "iter",
    "iterations": "iter",
    "num_steps": "iter",
    "workspace": "out_dir",
    "output": "out_dir",
    "output_dir": "out_dir",
    "save_path": "out_dir",
    "exp_name": "out_dir",
    "guidance_scale": "guidance_weight",
    "cfg": "guidance_weight",
    "lr": "learning_rate",
    "batch_size": "batch",
    "resolution": "train_res",
    "width": "train_res",
    "height": "train_res",
    "mesh": "base_mesh",
    "mesh_path": "base_mesh",
    "init_mesh": "base_mesh",
    "model": "sd_model",
    "pretrained_model_name_or_path": "sd_model",
    "hf_key": "sd_model",
    "sd_version": "sd_model",
    "sd_lora": "lora",
    "hdri": "envmap",
    "environment": "envmap",
    "gpu": "device",
}


class ConfigError(ValueError):
    """Raised for an invalid config. The message is one line: file, key, value and the allowed values."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def shown(value: object, limit: int = 200) -> str:
    """Return `value` as JSON on one line. If the text exceeds `limit` characters, its middle is omitted."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=repr)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} too large to show"
    if len(text) <= limit:
        return text
    head = limit // 2
    return f"{text[:head]}…{text[head + 1 - limit :]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most similar to `word`.

    If SYNONYMS maps `word` to a known word, that word is returned. Otherwise a known word is preferred if it
    begins with `word` or if `word` begins with it. Case and the difference between - and _ are ignored.
    """
    known = sorted(known)
    folded = word.lower().lstrip("-").replace("-", "_")
    if SYNONYMS.get(folded) in known:
        return SYNONYMS[folded]

    def similarity(candidate: str) -> tuple[bool, float]:
        other = candidate.lower()
        begins = folded.startswith(other) or other.startswith(folded)
        return begins, difflib.SequenceMatcher(None, folded, other).ratio()

    return max(known, key=similarity)
