"""Options that override several configs of one command: out_dir and base_mesh follow from them.

Configs are flat values here: `files` are the values of the files, `values` those with the options applied.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from configs.run import MESH_FILE, output_folder
from configs.schema import known_keys

logger = logging.getLogger(__name__)

Values = Mapping[str, object]
SLUG_LENGTH = 40
PATHS = ("out_dir", "base_mesh", "envmap", "relight", "tet_grid_file", "sd_model", "lora")


def expand_home(values: Values) -> dict[str, object]:
    """The same values with a leading ~ or ~user of every path replaced by the home folder, as in a shell."""

    def expanded(value: object) -> object:
        if isinstance(value, list):
            return [expanded(part) for part in value]
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value

    return {key: expanded(value) if key in PATHS else value for key, value in values.items()}


def resolve_chain(
    files: Sequence[Values], options: Values, say: Callable[..., None] = logger.warning
) -> list[dict[str, object]]:
    """Each file's values with the options applied, and the changes that follow, each logged by `say`:

    - --text without --out_dir: a config whose text changes writes beside its folder, not over it
      (pineapple_demo → pineapple_demo-a-mug);
    - --out_dir X for several configs: the first writes to X; a later one whose folder begins with the first
      one's keeps its ending (pineapple_demo, pineapple_demo_appearance → X, X_appearance), any other adds its
      own name;
    - a base_mesh that an earlier file of the command writes follows that file's config to its new folder;
    - --iter below coarse_iter without --coarse_iter: the run ends within its coarse phase.
    """
    resolved = [{**file, **options} for file in files]
    for file, values in zip(files, resolved, strict=True):
        if "out_dir" in file:
            values["out_dir"] = _folder(file, files[0], options)
        if "out_dir" in file and values["out_dir"] not in (file["out_dir"], options.get("out_dir")):
            say("out_dir: %s (was %s)", values["out_dir"], file["out_dir"])
        _shorten_coarse_phase(values, options, say)
    if "base_mesh" not in options:
        _follow_meshes(files, resolved, say)
    return resolved


def mesh_written(values: Values) -> str | None:
    """The mesh that a config writes, as an absolute path; None if out_dir is not usable (rejected later)."""
    name = values.get("out_dir")
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    return os.path.abspath(output_folder(name) / MESH_FILE)


def _folder(file: Values, first: Values, options: Values) -> object:
    """The out_dir of a config with the options applied. A value that is not text is returned unchanged."""
    own, target = file["out_dir"], options.get("out_dir")
    if "out_dir" in options:
        stem = first.get("out_dir", own)
        if file is first or not all(isinstance(name, str) for name in (own, stem, target)):
            return target
        own, stem, target = own.rstrip("/"), stem.rstrip("/"), target.rstrip("/")
        extends = own.startswith(stem) and own != stem
        return target + own[len(stem) :] if extends else f"{target}_{Path(own).name}"
    same_text = options.get("text", file.get("text", "")) == file.get("text", "")
    if same_text or not own or not isinstance(own, str):
        return own
    return f"{own.rstrip('/')}-{slug(str(options['text']))}"


def slug(text: str) -> str:
    """A folder name from a prompt: "A mug" → "a-mug". A hash is added where that loses characters."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    name = "-".join(words)
    plain = re.fullmatch(r"[A-Za-z0-9 ]+", text) and len(name) <= SLUG_LENGTH
    if plain and name:
        return name
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{name[:SLUG_LENGTH].strip('-')}-{digest}".strip("-")


def _follow_meshes(
    files: Sequence[Values], resolved: Sequence[dict[str, object]], say: Callable[..., None]
) -> None:
    moves: dict[str, dict[str, object]] = {}
    for file, values in zip(files, resolved, strict=True):
        named = values.get("base_mesh")
        named_path = os.path.abspath(named) if isinstance(named, str) else None
        source = moves.get(named_path)
        if source is not None and mesh_written(source) not in (named_path, None):
            values["base_mesh"] = str(output_folder(source["out_dir"]) / MESH_FILE)
            say("base_mesh: %s (was %s)", values["base_mesh"], named)
        if mesh_written(file):
            moves[mesh_written(file)] = values


def _shorten_coarse_phase(values: dict[str, object], options: Values, say: Callable[..., None]) -> None:
    last, coarse = options.get("iter"), values.get("coarse_iter", known_keys()["coarse_iter"].default)
    if "coarse_iter" in options or not type(last) is type(coarse) is int or coarse <= last:
        return
    say("coarse_iter: %d (was %d), because --iter %d ends the run before it", last, coarse, last)
    values["coarse_iter"] = last
