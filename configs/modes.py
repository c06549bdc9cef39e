"""Labels and defaults that differ between geometry_modeling and appearance_modeling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd.schedule import Schedule, appearance_schedule, geometry_schedule

if TYPE_CHECKING:
    from configs.schema import Config


@dataclass(frozen=True)
class Mode:
    """Labels and defaults of a mode.

    label: name of the mode's result in pages and logs. stage: name of the result in the overview of a sweep.
    main_layer: the preview layer that shows the result best. paints_base_mesh: whether the run needs
    base_mesh and writes textures for it. memory_keys: the config keys that affect memory most, besides batch
    and train_res. negative_prompt: default that is used if negative_text is empty. learning_rate: default
    that is used if the key learning_rate is null. schedule: function that returns the phases of a config's
    run. unused_sections, unused_keys: settings that do not affect the weights in this mode, so they may be
    changed when a run is resumed. used_keys: keys of unused_sections that do affect the weights.
    """

    label: str
    stage: str
    main_layer: str
    paints_base_mesh: bool
    memory_keys: tuple[str, ...]
    negative_prompt: str
    learning_rate: float
    schedule: Callable[[Config], Schedule]
    unused_sections: tuple[str, ...] = ()
    unused_keys: tuple[str, ...] = ()
    used_keys: tuple[str, ...] = ()


MODES = {
    "geometry_modeling": Mode(
        label="shape",
        stage="shape",
        main_layer="normal",
        paints_base_mesh=False,
        memory_keys=("dmtet_grid",),
        negative_prompt="low quality",
        learning_rate=1e-3,
        schedule=lambda config: geometry_schedule(config.schedule, fit=not config.surface.keeps_faces),
        unused_sections=("material", "light", "textures"),
        unused_keys=(
            "normalise_mesh",
            "train_background",
            "sds_weight_strategy",
            "control_model",
            "control",
            "control_weight",
        ),
    ),
    "appearance_modeling": Mode(
        label="material",
        stage="painted",
        main_layer="shaded",
        paints_base_mesh=True,
        memory_keys=("env_resolution", "texture_res"),
        negative_prompt="shadow, oversaturated, low quality, unrealistic",
        learning_rate=1e-2,
        schedule=lambda config: appearance_schedule(config.schedule),
        unused_sections=("surface", "geometry", "regularisers", "start_shape"),
        unused_keys=("if_flip_the_normal",),
        used_keys=(
            "base_mesh",
            "base_mesh_up",
            "base_mesh_front",
            "hash_n_levels",
            "hash_log2_hashmap_size",
            "hash_max_resolution",
        ),
    ),
}
