"""The prompt lists that ship ask for everything that the embedded prior was taught, and for more."""

import json
from pathlib import Path

from dataset.procedural.materials import HELD_OUT
from training.evaluation.assets import parse_target
from training.sweep.grid import read_prompts

ROOT = Path(__file__).parents[2]
KNOWN = tuple(name.replace(" ", "_") for name in json.loads((ROOT / "data/tiny-sd/kinds.json").read_text()))
PRESETS = ("tall", "round", "long")


def asked(suffix: str) -> dict[str, list[tuple[str, str | None]]]:
    """By preset the (kind, material) that its list asks for."""
    files = {preset: ROOT / f"configs/prompts/{preset}{suffix}.txt" for preset in PRESETS}
    found = {
        preset: [parse_target(line, KNOWN) for line in read_prompts(str(path))]
        for preset, path in files.items()
    }
    return {preset: [(want.kind, want.material) for want in wants] for preset, wants in found.items()}


def test_every_kind_is_asked_for_once_in_its_own_colours():
    pairs = [pair for some in asked("").values() for pair in some]
    assert sorted(kind for kind, _ in pairs) == sorted(KNOWN)
    assert {material for _, material in pairs} <= {None, "own"}


def test_the_lists_of_materials_have_every_kind_and_every_pair_that_was_held_out():
    plain, dressed = asked(""), asked("_materials")
    for preset in PRESETS:
        assert {kind for kind, _ in dressed[preset]} == {kind for kind, _ in plain[preset]}
    pairs = [pair for some in dressed.values() for pair in some]
    assert set(pairs) >= HELD_OUT
    assert len(set(pairs)) == len(pairs)
    assert None not in {material for _, material in pairs}
    assert len({material for _, material in pairs}) >= 12
