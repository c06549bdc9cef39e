"""Test that the shipped prompt lists cover all categories of the embedded prior and all held-out pairs."""

import json
from pathlib import Path

from dataset.procedural.materials import HELD_OUT
from training.evaluation.assets import parse_target
from training.sweep.grid import read_prompts

ROOT = Path(__file__).parents[2]
KNOWN = tuple(
    name.replace(" ", "_") for name in json.loads((ROOT / "data/tiny-sd/categories.json").read_text())
)
PRESETS = ("tall", "round", "long")


def targets(suffix: str) -> dict[str, list[tuple[str, str | None]]]:
    """Return {preset of the start shape: [(category, material) of each prompt]}."""
    files = {preset: ROOT / f"configs/prompts/{preset}{suffix}.txt" for preset in PRESETS}
    found = {
        preset: [parse_target(line, KNOWN) for line in read_prompts(str(path))]
        for preset, path in files.items()
    }
    return {
        preset: [(target.category, target.material) for target in found_targets]
        for preset, found_targets in found.items()
    }


def test_each_category_has_one_prompt_without_material():
    pairs = [pair for some in targets("").values() for pair in some]
    assert sorted(category for category, _ in pairs) == sorted(KNOWN)
    assert {material for _, material in pairs} <= {None, "own"}


def test_material_prompts_cover_all_categories_and_held_out_pairs():
    plain, with_material = targets(""), targets("_materials")
    for preset in PRESETS:
        assert {category for category, _ in with_material[preset]} == {
            category for category, _ in plain[preset]
        }
    pairs = [pair for some in with_material.values() for pair in some]
    assert set(pairs) >= HELD_OUT
    assert len(set(pairs)) == len(pairs)
    assert None not in {material for _, material in pairs}
    assert len({material for _, material in pairs}) >= 12
