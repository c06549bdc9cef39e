"""The settings and their names, the start shapes of the categories, and the list of trials of a benchmark."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ConfigError, nearest, shown
from configs.schema import Config, known_keys, parse_config
from dataset.procedural import CATEGORIES
from dataset.procedural.materials import MATERIALS
from sd.schedule import FIT_STEPS
from training.evaluation.ground_truth import material_name

ROOT = Path(__file__).resolve().parents[3]
SHAPE, PAINT, COST = "shape", "paint", "cost"
CONFIG_FILES = {SHAPE: "pineapple_demo_geometry.json", PAINT: "pineapple_demo_appearance.json"}

# Number of steps of each phase in a COST trial. The first half of the steps is the warm-up.
COST_STEPS = 40

# Semi-axes of the start ellipsoid. The key is the name of the file in configs/prompts that contains the
# category.
START_SCALES = {"tall": (0.45, 0.65, 0.45), "round": (0.55, 0.55, 0.55), "long": (0.45, 0.45, 0.65)}

TWELVE = "car chair quadruped person head fish airplane boat mug pineapple bird hamburger".split()

EARLY_LATE = {"early_time_step_range": [0.5, 0.98], "late_time_step_range": [0.02, 0.5]}
# The settings without values are those of the demo configs, with normal_consistency 0.03.
SUITES: dict[str, dict[str, dict[str, object]]] = {
    "regularisers": {
        "baseline": {},
        "none": {"normal_consistency": 0.0},
        "nc 0.1": {"normal_consistency": 0.1},
        "nc 0.3": {"normal_consistency": 0.3},
        "laplacian 30": {"normal_consistency": 0.0, "laplacian": 30.0},
        "laplacian 100": {"normal_consistency": 0.0, "laplacian": 100.0},
    },
    "scores": {
        "sds": {},
        "csd": {"score": "csd"},
        "nfsd": {"score": "nfsd"},
        "vsd": {"score": "vsd"},
        "sds, perp_neg": {"perp_neg": True},
        "sds, annealed t": {"time_step_schedule": "annealed", **EARLY_LATE},
        "sds, sqrt t": {"time_step_schedule": "sqrt", "early_time_step_range": [0.02, 0.98]},
        "sds, sqrt t, surface noise": {
            "time_step_schedule": "sqrt",
            "early_time_step_range": [0.02, 0.98],
            "noise": "surface",
        },
    },
}


@dataclass(frozen=True)
class Trial:
    """One run, defined by stage (SHAPE, PAINT or COST), category, seed and setting."""

    stage: str
    setting: str
    category: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.setting.replace(' ', '_').replace(',', '')}-{self.category}-{self.seed}-{self.stage}"


def trials_of(
    settings: Sequence[str], categories: Sequence[str], seeds: Sequence[int], stages: Sequence[str]
) -> list[Trial]:
    """Return all trials in the order in which they run.

    The setting varies fastest, so that all settings have run on nearly the same objects if the benchmark ends
    early.
    """
    costs = [Trial(COST, setting, categories[0], seeds[0]) for setting in settings]
    return costs + [
        Trial(stage, setting, category, seed)
        for seed in seeds
        for category in categories
        for stage in stages
        for setting in settings
    ]


def read_setting(words: Sequence[str]) -> tuple[str, dict[str, object]]:
    """Parse NAME KEY=VALUE … into a name and config values.

    Raises:
        ConfigError: if an argument is not KEY=VALUE, or if the key is unknown.
    """
    name, *pairs = words
    keys, found = known_keys(), {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or key not in keys:
            known = f"; the nearest known key is {shown(nearest(key, keys))}" if key not in keys else ""
            raise ConfigError(f"command line: --setting {name}: {shown(pair)} is not KEY=VALUE{known}")
        found[key] = keys[key].from_words([text])
    return name, found


def start_scale(category: str) -> tuple[float, float, float]:
    """Return the semi-axes of the category's start ellipsoid.

    Raises:
        ConfigError: if no file in configs/prompts contains the category.
    """
    for name, scale in START_SCALES.items():
        text = (ROOT / "configs" / "prompts" / f"{name}.txt").read_text(encoding="utf-8").lower()
        if any(line.split(maxsplit=1)[-1] == readable(category) for line in text.splitlines()):
            return scale
    raise ConfigError(
        f"command line: --categories: unknown category {shown(category)}; known: {', '.join(CATEGORIES)}"
    )


def readable(category: str) -> str:
    return category.replace("_", " ")


def prompt(trial: Trial) -> str:
    """Return the prompt of a trial, for example "A car", or "A golden car" for an appearance trial."""
    words = readable(trial.category)
    if trial.stage == PAINT:
        words = f"{MATERIALS[material_name(trial.category, trial.seed)].adjective} {words}"
    return f"{'An' if words[0] in 'aeiou' else 'A'} {words}"


def config_of(
    trial: Trial, changed: Mapping[str, object], common: Mapping[str, object], out_dir: Path
) -> Config:
    """Return the config of a trial: the demo's config for its stage, without pictures and checkpoints.

    changed: the values of the setting. common: values for all trials, which override `changed`.
    """
    stage = PAINT if trial.stage == PAINT else SHAPE
    path = ROOT / "configs" / CONFIG_FILES[stage]
    values = json.loads(path.read_text(encoding="utf-8"))
    quiet = {"save_interval": 0, "video_interval": 0, "checkpoint_interval": 0, "validate": False}
    values |= quiet | {"text": prompt(trial), "seed": trial.seed, "out_dir": str(out_dir.absolute())}
    values["sd_model"] = str(ROOT / values["sd_model"])
    if stage == SHAPE:
        values["sdf_init_shape_scale"] = list(start_scale(trial.category))
    else:
        values["base_mesh"] = str(out_dir.absolute() / "mesh.obj")
    values |= {**changed, **common}
    if trial.stage == COST:
        values |= {"iter": FIT_STEPS + 2 * COST_STEPS, "coarse_iter": FIT_STEPS + COST_STEPS}
    return parse_config(values, f"{path.name}, {trial.setting}")
