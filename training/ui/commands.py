"""Convert the input of the page to a command line of train.py."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.demo import PAIR, QUICK, demo_paths
from configs.errors import ConfigError
from configs.overrides import slug
from configs.run import OUTPUT_ROOT
from render.mesh_io.load import READERS

FROM_TEXT, PAINT, REFINE, START = (
    "Shape and material from a text",
    "Paint my mesh",
    "Refine my mesh and paint it",
    "Start from my mesh",
)
TASKS = (FROM_TEXT, PAINT, REFINE, START)
MAX_NAME = 60
# Maximum distance of a start mesh from the origin, as for the embedded prior's training objects.
START_REACH = 0.75


@dataclass(frozen=True)
class Request:
    """Input of the page for a new run.

    name: the folder in out/; "" creates a name from the text. meshes: uploaded files; one of them is the
    mesh. settings: dict from option name ("seed", "geometry.iter") to value; None selects the default.
    """

    task: str
    text: str
    quick: bool = False
    name: str = ""
    meshes: Sequence[Path] = ()
    settings: Mapping[str, object] = field(default_factory=dict)


def result_folder(request: Request) -> Path:
    """Return the folder of a new result.

    The name of the folder is the name in the request. If the request has no name, the folder is named by the
    slug of the text and the first unused number.

    Raises:
        ConfigError: if the name contains other characters than letters, digits, spaces, dots, - and _.
    """
    name = request.name.strip()
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ -]*", name):
        raise ConfigError(f"name {name!r}: use letters, digits, spaces, dots, - and _")
    if name:
        return OUTPUT_ROOT / name[:MAX_NAME].rstrip(" .")
    base, number = slug(request.text)[:MAX_NAME] or "result", 1
    while (OUTPUT_ROOT / f"{base}-{number}").exists():
        number += 1
    return OUTPUT_ROOT / f"{base}-{number}"


def mesh_among(files: Sequence[Path]) -> Path:
    """Return the mesh among the uploaded files. The other files are its materials and textures.

    Raises:
        ConfigError: if there is no mesh or more than one mesh.
    """
    meshes = [file for file in files if file.suffix.lower() in READERS]
    if len(meshes) != 1:
        known = ", ".join(READERS)
        raise ConfigError(f"upload one mesh ({known}) with its materials and textures; found {len(meshes)}")
    return meshes[0]


def command_line(request: Request, folder: Path, mesh: Path | None, common: Sequence[str]) -> list[str]:
    """Return the arguments of train.py for a request.

    mesh: the uploaded mesh, for all tasks except FROM_TEXT. common: options that all runs of the page get.

    Raises:
        ConfigError: if the text is empty.
    """
    text = request.text.strip()
    if not text:
        raise ConfigError("the text is empty; describe the object, for example: A golden mug")
    if request.task == PAINT:
        config = dict(zip(PAIR, demo_paths(), strict=True))["appearance"]
        words = ["--config", _relative(config), *_options({"text": text})]
        words += ["--out_dir", _inside(folder / "appearance")]
        words += _options(_quick_painting(request)) if request.quick else []
    else:
        words = [*_options({"text": text}), *["--quick"] * request.quick, "--out_dir", _inside(folder)]
    words += _mesh_options(request.task, str(mesh))
    used = {"geometry", "appearance"} if request.task != PAINT else {"appearance"}
    own = {key: value for key, value in request.settings.items() if value is not None}
    own = {key: value for key, value in own.items() if "." not in key or key.partition(".")[0] in used}
    return [*words, *common, *_options(own)]


def _quick_painting(request: Request) -> dict[str, object]:
    """Return the values that --quick would set, because train.py accepts --quick only for the demo pair."""
    values = dict(QUICK["appearance"])
    if request.settings.get("appearance.iter"):
        # Omit coarse_iter, because it may exceed the requested number of steps.
        del values["coarse_iter"]
    return values


def shell_line(argv: Sequence[str]) -> str:
    """Return the command in shell syntax."""
    return shlex.join(["python3", _relative(Path(__file__).parents[2] / "train.py"), *argv])


def _mesh_options(task: str, mesh: str) -> list[str]:
    values: dict[str, object] = {}
    if task == PAINT:
        values = {"base_mesh": mesh, "normalise_mesh": True}
    elif task == REFINE:
        values = {"geometry.base_mesh": mesh, "geometry.surface": "mesh", "normalise_mesh": True}
    elif task == START:
        scale = {"geometry.sdf_init_shape_scale": [START_REACH] * 3}
        values = {"geometry.base_mesh": mesh, "geometry.sdf_init_shape": "custom_mesh", **scale}
    return _options(values)


def _options(values: Mapping[str, object]) -> list[str]:
    """Convert values to options.

    Text that begins with - is passed as --KEY=TEXT, so it is read as a value.
    """
    found = []
    for key, value in values.items():
        parts = value if isinstance(value, list | tuple) else [value]
        words = [str(part).lower() if isinstance(part, bool) else str(part) for part in parts]
        found += [f"--{key}={words[0]}"] if words[0].startswith("-") else [f"--{key}", *words]
    return found


def _inside(folder: Path) -> str:
    """Return an out_dir without the leading out/, because train.py adds it."""
    return str(folder.relative_to(OUTPUT_ROOT)) if folder.parts[:1] == OUTPUT_ROOT.parts else str(folder)


def _relative(path: str | Path) -> str:
    """Return the path relative to the current directory, or the absolute path if it is outside."""
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return absolute if relative.startswith("..") else relative
