"""Config files, folders and start shape of the demo pair.

The pair consists of a geometry config and an appearance config. --text without --config runs the pair.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from configs.json_file import read_object
from configs.run import MESH_FILE, output_folder
from sd.prompts import find_category

HERE = Path(__file__).parent
# Config file of each stage, in the order of the run. Each stage writes to a folder with the stage's name.
PAIR = {"geometry": "pineapple_demo_geometry.json", "appearance": "pineapple_demo_appearance.json"}
START_SHAPES = HERE / "prompts" / "start_shapes.json"
# Values that --quick sets: fewer steps, and fewer and smaller pictures. With these values, both stages
# together take about two minutes on two cores.
QUICK = {
    "geometry": {
        "iter": 700,
        "coarse_iter": 700,
        "preview_res": [256, 256],
        "texture_res": [512, 512],
        "save_interval": 100,
    },
    "appearance": {
        "iter": 120,
        "coarse_iter": 100,
        "preview_res": [256, 256],
        "texture_res": [512, 512],
        "save_interval": 40,
    },
}


def demo_paths() -> tuple[str, ...]:
    """Return the paths of the pair's config files in the order of the run."""
    return tuple(str(HERE / name) for name in PAIR.values())


def demo_files(folder: str, text: str | None, quick: bool) -> tuple[dict[str, object], ...]:
    """Return the flat values of the pair's two configs for a prompt.

    folder: the out_dir in which the folders geometry and appearance are created. text: the prompt; None keeps
    the prompt of the files. quick: whether the values of QUICK replace those of the files.
    """
    found, mesh = [], str(output_folder(f"{folder}/geometry") / MESH_FILE)
    for stage, path in zip(PAIR, demo_paths(), strict=True):
        values = {**read_object(path), **(QUICK[stage] if quick else {})}
        values["out_dir"] = f"{folder.rstrip('/')}/{stage}" if folder else ""
        if "base_mesh" in values:
            values["base_mesh"] = mesh
        if text is not None:
            values["text"] = text
            if "sdf_init_shape_scale" in values:
                values |= start_shape(text)
        found.append(values)
    return tuple(found)


def start_shape(text: str) -> dict[str, object]:
    """Return the config values of the start shape for the category in `text`, as a dict from key to value.

    The dict is empty if `text` contains no category of START_SHAPES.
    """
    table = _start_shapes()
    category = find_category(text, table)
    return {} if category is None else {"sdf_init_shape_scale": table[category]}


@cache
def _start_shapes() -> Mapping[str, list[float]]:
    """Return a dict from each category in START_SHAPES to the scale of its start shape."""
    shapes = json.loads(START_SHAPES.read_text(encoding="utf-8")).values()
    return {category: shape["sdf_init_shape_scale"] for shape in shapes for category in shape["categories"]}
