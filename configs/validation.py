"""Checks that need several keys, and checks of input files.

`place(key)` returns where the value of the key was set (file or option). The result is used in error
messages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from configs.errors import ConfigError, shown
from configs.run import output_folder, written_mesh
from geometry.tet_grid import load_tet_grid
from render.mesh_io.load import load_mesh
from render.mesh_io.load_materials import WITH_MATERIALS
from render.shade.light import read_environment_map, resolve_map
from render.texturing.given_config import GivenConfig, read_given
from sd.loading.lora import parse_lora

if TYPE_CHECKING:
    from configs.schema import Config

Place = Callable[[str], str]

# Keys of the start shape and of the tetrahedral grid.
GRID_KEYS = (
    "sdf_init_shape",
    "sdf_init_shape_scale",
    "sdf_init_shape_rotate_x",
    "translation_y",
    "translation_z",
    "dmtet_grid",
    "mesh_scale",
    "tet_grid_file",
)
# Keys that are used in geometry_modeling only.
GEOMETRY_ONLY = (
    "surface",
    "large_steps_lambda",
    *GRID_KEYS,
    "detail_band",
    "normal_consistency",
    "laplacian",
    "min_component_area",
    "if_flip_the_normal",
)
# DMTET_ONLY: keys that geometry_modeling does not use if surface is "mesh". MESH_SURFACE_ONLY: keys that
# geometry_modeling uses only if surface is "mesh".
DMTET_ONLY = (
    *GRID_KEYS,
    "hash_n_levels",
    "hash_log2_hashmap_size",
    "hash_max_resolution",
    "detail_band",
    "min_component_area",
    "export_faces",
    "unwrap",
    "uv_padding_block",
)
MESH_SURFACE_ONLY = ("large_steps_lambda", "normalise_mesh")
APPEARANCE_ONLY = (
    "init_textures",
    "paint_mask",
    "atlas",
    "normalise_mesh",
    "relight",
    "learn_light",
    "camera_space_light",
    "sds_weight_strategy",
    "control_model",
    "control",
    "control_weight",
    "if_use_bump",
    "kd_min",
    "kd_max",
    "ks_min",
    "ks_max",
    "nrm_min",
    "nrm_max",
)


def check_together(config: Config, place: Place) -> None:
    """Reject combinations of values that are not allowed although each value by itself is valid.

    Raises:
        ConfigError: if a combination is not allowed. The message contains both keys and their values.
    """
    run, camera, schedule, material = config.run, config.camera, config.schedule, config.material
    _check_out_dir(run.out_dir, place)
    ranges = {
        "fovy_range": camera.fovy_range,
        "elevation_range": camera.elevation_range,
        "early_time_step_range": schedule.early_time_step_range,
        "late_time_step_range": schedule.late_time_step_range,
    }
    for key, value in ranges.items():
        if value[0] > value[1]:
            raise _refusal(key, value, place, "the lower end first, then the upper")
    if camera.cam_near_far[0] >= camera.cam_near_far[1]:
        raise _refusal(
            "cam_near_far", camera.cam_near_far, place, "the near distance smaller than the far one"
        )
    if run.train_res[0] != run.train_res[1]:
        raise _refusal("train_res", run.train_res, place, "a square, as the prior's own images are")
    for channel in ("kd", "ks", "nrm"):
        low, high = getattr(material, f"{channel}_min"), getattr(material, f"{channel}_max")
        if any(a > b for a, b in zip(low, high, strict=False)):
            raise _refusal(
                f"{channel}_min", low, place, f"numbers up to those of {channel}_max, {shown(high)}"
            )
    if not run.traits.paints_base_mesh and run.train_background != "black":
        raise _refusal("train_background", run.train_background, place, f"black, because mode is {run.mode}")
    if schedule.coarse_iter > schedule.iter:
        raise _refusal("coarse_iter", schedule.coarse_iter, place, f"at most iter, {schedule.iter}")
    try:
        _ = run.rotation
    except ValueError as error:
        raise ConfigError(f"{place('base_mesh_front')}: {error}") from None
    if run.base_mesh is None:
        needs = {"mode": run.mode} if run.traits.paints_base_mesh else {}
        if not needs and config.surface.keeps_faces:
            needs["surface"] = config.surface.surface
        if config.start_shape.sdf_init_shape == "custom_mesh":
            needs["sdf_init_shape"] = "custom_mesh"
        for key, value in needs.items():
            raise _refusal("base_mesh", None, place, f"a mesh file, because {key} is {value}")
    elif run.traits.paints_base_mesh and config.textures.used:
        key = "init_textures" if config.textures.init_textures else "paint_mask"
        if PurePath(run.base_mesh).suffix.lower() not in WITH_MATERIALS:
            formats = ", ".join(WITH_MATERIALS)
            allowed = f"a file with textures ({formats}), because {key} is set"
            raise _refusal("base_mesh", run.base_mesh, place, allowed)


def warn_without_effect(config: Config, changed: Collection[str], say: Callable[..., None]) -> None:
    """Log the keys of `changed` that have no effect because of another key's value.

    changed: the keys whose given value differs from the default.
    """
    paints = config.run.traits.paints_base_mesh
    moves_vertices = config.surface.keeps_faces and not paints
    used = MESH_SURFACE_ONLY if moves_vertices else ()
    idle = {f"mode {config.run.mode}": GEOMETRY_ONLY if paints else APPEARANCE_ONLY}
    if not paints:
        others = DMTET_ONLY if moves_vertices else ("large_steps_lambda",)
        idle[f"surface {config.surface.surface}"] = others
    for cause, keys in idle.items():
        if named := ", ".join(key for key in keys if key in changed and key not in used):
            say("%s: these keys have no effect with %s: %s", config.run.out_dir, cause, named)
    if not config.reads_base_mesh and "base_mesh" in changed:
        say(
            "%s: base_mesh has no effect with sdf_init_shape %s; "
            'write "sdf_init_shape": "custom_mesh" to start from it, or "surface": "mesh" to keep its faces',
            config.run.out_dir,
            config.start_shape.sdf_init_shape,
        )
    if not config.guidance.add_directional_text and "front_threshold" in changed:
        say("%s: front_threshold has no effect without add_directional_text", config.run.out_dir)


def check_files(config: Config, place: Place, written: Collection[Path]) -> None:
    """Reject input files that do not exist and an out_dir that cannot be created.

    A missing environment map is accepted if `resolve_map` replaces it by the default map. written: the meshes
    that earlier configs of the same command write before this config runs. These meshes need not exist yet.

    Raises:
        ConfigError: if a path is not usable. The message contains the key and the path.
    """
    files = {
        "base_mesh": config.run.base_mesh,
        "envmap": config.light.envmap,
        "relight": config.light.relight,
        "tet_grid_file": config.geometry.tet_grid_file,
        "paint_mask": config.textures.mask_file,
    }
    for key, given in files.items():
        if given is None or _is_written(given, written):
            continue
        name = str(resolve_map(given)) if key in ("envmap", "relight") else given
        if not os.path.isfile(name):
            what = "is a folder" if os.path.isdir(name) else "does not exist"
            if output_folder(name) == Path(name):
                what += " (a config that writes it must run before, or earlier in the same command)"
            raise _refusal(
                key, given, place, f"a file that exists, and {shown(os.path.abspath(name))} {what}"
            )
    _check_writable(config.run.out_dir, place)


def check_inputs(config: Config, written: Collection[Path] = ()) -> None:
    """Read every input file of a config once, so that a damaged file is rejected before the run starts.

    Meshes that the same command writes are skipped.

    Raises:
        ValueError, OSError: if a file cannot be used. The message is one line with the file, the fault and
        the fix.
    """
    for path in (config.light.envmap, config.light.relight):
        if path is not None:
            _check_once(read_environment_map, path)
    for entry in config.guidance.lora:
        parse_lora(entry)
    if (grid := config.geometry.tet_grid_file) is not None:
        _check_once(load_tet_grid, grid, 1.0, 64)
    mesh = config.run.base_mesh if config.reads_base_mesh else None
    if mesh is not None and os.path.isfile(mesh) and not _is_written(mesh, written):
        _check_once(load_mesh, mesh)
        if config.run.traits.paints_base_mesh and config.textures.used:
            _check_given(config.textures, mesh)


@cache
def _check_given(textures: GivenConfig, mesh: str) -> None:
    read_given(textures, mesh)


@cache
def _check_once(read: Callable[..., object], path: str, *arguments: float) -> None:
    """Read a file. The result is cached, so each file is read only once for all trials of a sweep."""
    read(path, *arguments)


def _is_written(name: str, written: Collection[Path]) -> bool:
    return written_mesh(name) in {os.path.abspath(path) for path in written}


def _check_writable(out_dir: str, place: Place) -> None:
    """Check that the existing part of the output path is a folder that can be written to."""
    folder = output_folder(out_dir).absolute()
    existing = next((parent for parent in (folder, *folder.parents) if os.path.exists(parent)), folder)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        what = "cannot be written to" if os.path.isdir(existing) else "is not a folder"
        raise _refusal(
            "out_dir", out_dir, place, f"a folder that can be created, and {shown(str(existing))} {what}"
        )


def _check_out_dir(name: str, place: Place) -> None:
    parts = PurePath(name).parts
    if not parts or ".." in parts or any(not character.isprintable() for character in name):
        raise _refusal("out_dir", name, place, "a folder name without .. in it")


def _refusal(key: str, value: object, place: Place, allowed: str) -> ConfigError:
    return ConfigError(f"{place(key)}: key {shown(key)} has the value {shown(value)}; allowed is {allowed}")
