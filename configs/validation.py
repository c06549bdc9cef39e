"""Checks that see more than one key, and checks of files.

`place(key)` says where the key's value comes from, for the message.
"""

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePath

from configs.errors import ConfigError, shown
from configs.run import output_folder
from render.shade.light import resolve_map

Place = Callable[[str], str]

RANGES = ("fovy_range", "elevation_range", "early_time_step_range", "late_time_step_range")
MINIMA = (("kd_min", "kd_max"), ("ks_min", "ks_max"), ("nrm_min", "nrm_max"))
FILES = ("base_mesh", "envmap", "relight", "tet_grid_file")
MAPS = ("envmap", "relight")


def check_together(values: Mapping[str, object], place: Place) -> None:
    """Refuse values that are fine alone and wrong together. values: every key, flat.

    Raises:
        ConfigError: naming both keys and their values.
    """
    _check_out_dir(values["out_dir"], place)
    for key in RANGES:
        low, high = values[key]
        if low > high:
            raise _refusal(key, values, place, "the lower end first, then the upper")
    if values["cam_near_far"][0] >= values["cam_near_far"][1]:
        raise _refusal("cam_near_far", values, place, "the near distance smaller than the far one")
    if values["train_res"][0] != values["train_res"][1]:
        raise _refusal("train_res", values, place, "a square, as the prior's own images are")
    for low, high in MINIMA:
        if low in values and any(a > b for a, b in zip(values[low], values[high], strict=False)):
            raise _refusal(low, values, place, f"numbers up to those of {high}, {shown(values[high])}")
    if values["coarse_iter"] > values["iter"]:
        raise _refusal("coarse_iter", values, place, f"at most iter, {values['iter']}")
    if values["base_mesh"] is None:
        for key, needy in (("mode", "appearance_modeling"), ("sdf_init_shape", "custom_mesh")):
            if values.get(key) == needy:
                raise _refusal("base_mesh", values, place, f"a mesh file, because {key} is {needy}")


def check_files(values: Mapping[str, object], place: Place, written: Collection[Path]) -> None:
    """Refuse files that are not there and an out_dir that cannot be.

    An environment map that `resolve_map` replaces by the default is as good as there.
    written: the meshes that earlier configs of the same command will have written.

    Raises:
        ConfigError: naming key and path.
    """
    for key in FILES:
        name = values.get(key)
        if name is None or os.path.abspath(name) in {os.path.abspath(path) for path in written}:
            continue
        if key in MAPS:
            name = str(resolve_map(name))
        if not os.path.isfile(name):
            what = "is a folder" if os.path.isdir(name) else "is not there"
            if output_folder(name) == Path(name):
                what += " (a config that writes it must run before, or earlier in the same command)"
            raise _refusal(
                key, values, place, f"a file that exists, and {shown(os.path.abspath(name))} {what}"
            )
    _check_writable(values, place)


def _check_writable(values: Mapping[str, object], place: Place) -> None:
    """The part of the output path that is there already must be a folder that can be written to."""
    folder = output_folder(values["out_dir"]).absolute()
    there = next((parent for parent in (folder, *folder.parents) if os.path.exists(parent)), folder)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written to" if os.path.isdir(there) else "is not a folder"
        raise _refusal("out_dir", values, place, f"a folder that can be made, and {shown(str(there))} {what}")


def _check_out_dir(name: str, place: Place) -> None:
    parts = PurePath(name).parts
    if not parts or ".." in parts or any(not character.isprintable() for character in name):
        raise _refusal("out_dir", {"out_dir": name}, place, "a folder name without .. in it")


def _refusal(key: str, values: Mapping[str, object], place: Place, allowed: str) -> ConfigError:
    return ConfigError(
        f"{place(key)}: key {shown(key)} has the value {shown(values[key])}; allowed is {allowed}"
    )
