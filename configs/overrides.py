"""Apply the options of a command to its configs.

If an option changes the output folder of a config, later configs read the config's mesh from the new folder.

Here a config is a mapping of flat values. `files` are the values in the files, `values` the values after the
options are applied.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from configs.modes import MODES
from configs.run import MESH_FILE, output_folder, written_mesh
from configs.schema import known_keys

logger = logging.getLogger(__name__)

Values = Mapping[str, object]
SLUG_LENGTH = 40
# Separates stage and key in an option: --geometry.iter sets iter in the configs of the mode
# geometry_modeling.
STAGE_MARK = "."
STAGES = {mode.removesuffix("_modeling"): mode for mode in MODES}
# Keys that cannot be set for one stage only: the output folders depend on each other, and the mode determines
# the stage.
NOT_FOR_ONE_STAGE = {"out_dir", "mode"}
PATHS = (
    "out_dir",
    "base_mesh",
    "paint_mask",
    "envmap",
    "relight",
    "tet_grid_file",
    "sd_model",
    "lora",
    "second_sd_model",
    "control_model",
)


def expand_home(values: Values) -> dict[str, object]:
    """Return `values` with a leading ~ or ~user of every path replaced by the home folder, as in a shell."""

    def expanded(value: object) -> object:
        if isinstance(value, list):
            return [expanded(part) for part in value]
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value

    return {
        name: expanded(value) if name.rpartition(STAGE_MARK)[2] in PATHS else value
        for name, value in values.items()
    }


def resolve_chain(
    files: Sequence[Values], options: Values, say: Callable[..., None] = logger.info
) -> list[dict[str, object]]:
    """Apply the options and return the new values of every file.

    `say` logs each value that differs from both the file and the options.

    - --geometry.KEY applies to the configs of the mode geometry_modeling, --appearance.KEY to those of
      appearance_modeling. Both take precedence over --KEY.
    - --text without --out_dir: a config whose text changes writes to a new folder next to the old one
      (pineapple_demo → pineapple_demo-a-mug).
    - --out_dir X for several configs: the first config writes to X. If the folder name of a later config
      begins with that of the first, the beginning is replaced by X (pineapple_demo, pineapple_demo_appearance
      → X, X_appearance). Otherwise the later config writes to X_NAME, where NAME is its old folder name.
    - If base_mesh is written by an earlier config of the command, it is read from that config's new folder.
    - --iter less than coarse_iter without --coarse_iter: coarse_iter is reduced to iter, so the run ends
      within its coarse phase.
    """
    own = [options_for(file, options) for file in files]
    resolved = [{**file, **options} for file, options in zip(files, own, strict=True)]
    for file, values, laid_over in zip(files, resolved, own, strict=True):
        if "out_dir" in file:
            values["out_dir"] = _folder(file, files[0], laid_over)
        if "out_dir" in file and values["out_dir"] not in (file["out_dir"], options.get("out_dir")):
            say("out_dir: %s (was %s)", values["out_dir"], file["out_dir"])
        _shorten_coarse_phase(values, laid_over, say)
    _follow_meshes(files, resolved, own, say)
    return resolved


def options_for(file: Values, options: Values) -> dict[str, object]:
    """Return the options that apply to a file, as a dict from key to value.

    These are all options --KEY, and all options --STAGE.KEY for the stage of the file's mode.
    """
    mode = mode_of(file, options)
    general = {key: value for key, value in options.items() if STAGE_MARK not in key}
    stages = {name.partition(STAGE_MARK)[0] for name in options if STAGE_MARK in name}
    for stage in (stage for stage in stages if STAGES[stage] == mode):
        prefix = stage + STAGE_MARK
        general |= {key.removeprefix(prefix): options[key] for key in options if key.startswith(prefix)}
    return general


def mode_of(file: Values, options: Values) -> object:
    """Return the mode of a file after the options are applied. The value is not checked yet."""
    return options.get("mode", file.get("mode", known_keys()["mode"].default))


def stage_option_names() -> list[str]:
    """Return the names of all options that apply to one stage: geometry.iter, appearance.iter, …"""
    keys = [name for name in known_keys() if name not in NOT_FOR_ONE_STAGE]
    return [f"{stage}{STAGE_MARK}{name}" for stage in STAGES for name in keys]


def mesh_written(values: Values) -> str | None:
    """Return the absolute path of the mesh that a config writes.

    The result is None if out_dir is not a usable path. `parse_config` rejects such a value later.
    """
    name = values.get("out_dir")
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    return os.path.abspath(output_folder(name) / MESH_FILE)


def _folder(file: Values, first: Values, options: Values) -> object:
    """Return the out_dir of a config after the options are applied.

    A value that is not a string is returned unchanged. `parse_config` rejects it later.
    """
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
    """Convert a prompt to a folder name: "A mug" → "a-mug".

    A hash of the prompt is appended if the name is shortened or the prompt contains special characters.
    """
    words = re.findall(r"[a-z0-9]+", text.lower())
    name = "-".join(words)
    plain = re.fullmatch(r"[A-Za-z0-9 ]+", text) and len(name) <= SLUG_LENGTH
    if plain and name:
        return name
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{name[:SLUG_LENGTH].strip('-')}-{digest}".strip("-")


def _follow_meshes(
    files: Sequence[Values],
    resolved: Sequence[dict[str, object]],
    own: Sequence[Values],
    say: Callable[..., None],
) -> None:
    """Replace each base_mesh that an earlier config writes by the new path of this mesh.

    A base_mesh that an option sets is not replaced.
    """
    moves: dict[str, dict[str, object]] = {}
    for file, values, options in zip(files, resolved, own, strict=True):
        named = values.get("base_mesh")
        named_path = written_mesh(named) if isinstance(named, str) and "\0" not in named else None
        source = moves.get(named_path)
        moved = source is not None and mesh_written(source) not in (named_path, None)
        if moved and "base_mesh" not in options:
            values["base_mesh"] = str(output_folder(source["out_dir"]) / MESH_FILE.parent / Path(named).name)
            say("base_mesh: %s (was %s)", values["base_mesh"], named)
        if mesh_written(file):
            moves[mesh_written(file)] = values


def _shorten_coarse_phase(values: dict[str, object], options: Values, say: Callable[..., None]) -> None:
    last, coarse = options.get("iter"), values.get("coarse_iter", known_keys()["coarse_iter"].default)
    if "coarse_iter" in options or not type(last) is type(coarse) is int or coarse <= last:
        return
    say("coarse_iter: %d (was %d), because --iter %d ends the run before it", last, coarse, last)
    values["coarse_iter"] = last
