"""Test the recipes in configs/gallery, which are configs for the mesh of a user.

Each pair of recipes runs at toy size with a toy prior.
"""

import functools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import trimesh
from textured_parts import textured_asset
from toy_config import TINY

import train
from configs.json_file import read_object
from configs.schema import known_keys, parse_config
from render.mesh_io.load_materials import load_materials
from render.mesh_io.write_glb_parts import write_glb_parts
from sd import schedule
from sd.stable_diffusion import StableDiffusion
from training import tasks

ROOT = Path(__file__).parents[2]
RECIPES = {
    "repaint": ("recipe_repaint_appearance_keep", "recipe_repaint_appearance_new"),
    "refine": ("recipe_refine_geometry_mesh", "recipe_refine_appearance_textures"),
    "part": ("recipe_part_appearance_metal", "recipe_part_appearance_atlas"),
    "relight": ("recipe_relight_appearance_sky", "recipe_relight_appearance_studio"),
}
FIT = 3
# NAMES is {material name in the recipe: material name in the toy mesh}.
NAMES = {"armour": "red side", "cape": "shared"}


def values_of(name: str) -> dict[str, object]:
    return read_object(ROOT / f"configs/gallery/{name}.json")


def test_every_recipe_file_belongs_to_a_pair_of_the_page():
    files = {path.stem for path in (ROOT / "configs/gallery").glob("recipe_*.json")}
    assert files == {name for pair in RECIPES.values() for name in pair}
    page = (ROOT / "configs/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(\w+_(?:appearance|geometry)_\w+)`, `(\w+_appearance_\w+)` \|", page)
    named = [tuple(f"recipe_{name}" for name in row) for row in rows]
    assert sorted(named) == sorted(RECIPES.values())


@pytest.mark.parametrize("name", [name for pair in RECIPES.values() for name in pair])
def test_a_recipe_parses_and_holds_only_what_differs(name):
    values = values_of(name)
    parse_config(values, name)
    assert [key for key, value in values.items() if known_keys()[key].default == value] == []


@pytest.fixture(scope="module")
def once():
    """Return cached loaders of the prior and of the light, which all runs share."""
    return functools.cache(StableDiffusion.from_pretrained), functools.cache(tasks.load_environment)


@pytest.mark.parametrize("pair", RECIPES.values(), ids=list(RECIPES))
def test_a_recipe_runs(pair, once, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schedule, "FIT_STEPS", FIT)
    monkeypatch.setattr(StableDiffusion, "from_pretrained", once[0])
    monkeypatch.setattr(StableDiffusion, "free_text_encoder", lambda self: None)
    monkeypatch.setattr(tasks, "load_environment", once[1])
    write_glb_parts("my_mesh.glb", textured_asset())
    for name in pair:
        steps = FIT * ("init_textures" in values_of(name)) + 1
        values = {**values_of(name), **TINY, "batch": 1, "sd_model": str(model_folder), "iter": steps}
        values |= {"coarse_iter": steps - 1, "texture_res": [32, 32], "save_interval": 0, "video_interval": 0}
        values |= {key: str(ROOT / values[key]) for key in ("envmap", "relight") if key in values}
        if "paint_mask" in values:
            values["paint_mask"] = [NAMES[name] for name in values["paint_mask"]]
        Path(f"{name}.json").write_text(json.dumps(values))
    assert train.main(["--config", *(f"{name}.json" for name in pair)]) == 0
    for name in pair:
        made = Path("out") / values_of(name)["out_dir"] / "dmtet_mesh/mesh.glb"
        # After each stage, the materials and nodes are those of the input file.
        names = [material.name for material in load_materials(made, pictures=False)]
        assert names[:3] == ["red side", "plain", "shared"]
        assert {"root", "body", "wings"} <= set(trimesh.load(made).graph.nodes)


def test_a_resumed_run_equals_an_uninterrupted_one(once, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schedule, "FIT_STEPS", FIT)
    monkeypatch.setattr(StableDiffusion, "from_pretrained", once[0])
    monkeypatch.setattr(StableDiffusion, "free_text_encoder", lambda self: None)
    monkeypatch.setattr(tasks, "load_environment", once[1])
    write_glb_parts("my_mesh.glb", textured_asset())
    values = {
        **TINY,
        "mode": "appearance_modeling",
        "base_mesh": "my_mesh.glb",
        "sd_model": str(model_folder),
        "init_textures": True,
        "paint_mask": "shared",
        "batch": 1,
        "texture_res": [32, 32],
        "save_interval": 0,
        "video_interval": 0,
        "low_memory": True,
    }
    # The second run is interrupted twice: during the fit and after the fit.
    for folder, steps in (("whole", 5), ("parts", 2), ("parts", 4), ("parts", 5)):
        values |= {"out_dir": str(tmp_path / folder), "iter": steps, "coarse_iter": 1}
        Path("a.json").write_text(json.dumps(values))
        assert train.main(["--config", "a.json"]) == 0
    whole, parts = (tmp_path / name / "dmtet_mesh/mesh.glb" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    # A run cannot resume with other textures in the mesh file.
    asset = textured_asset()
    write_glb_parts("my_mesh.glb", replace(asset, materials=asset.materials[::-1]))
    values["iter"] = 6
    Path("a.json").write_text(json.dumps(values))
    assert train.main(["--config", "a.json"]) == 2
