"""The command line of a run that is described on the page."""

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
    """The request of the page to start a run.

    name: the folder in out/, "" for one made from the text. meshes: uploaded files, of which one is the mesh.
    settings: values by option name ("seed", "geometry.iter"); None leaves the default.
    """

    task: str
    text: str
    quick: bool = False
    name: str = ""
    meshes: Sequence[Path] = ()
    settings: Mapping[str, object] = field(default_factory=dict)


def result_folder(request: Request) -> Path:
    """The folder of a new result: the given name, or the text with the first free number.

    Raises:
        ConfigError: if the name is not a plain folder name.
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
    """The one mesh among uploaded files; the others are its materials and textures.

    Raises:
        ConfigError: if there is no mesh, or more than one.
    """
    meshes = [file for file in files if file.suffix.lower() in READERS]
    if len(meshes) != 1:
        known = ", ".join(READERS)
        raise ConfigError(f"upload one mesh ({known}) with its materials and textures; found {len(meshes)}")
    return meshes[0]


def command_line(request: Request, folder: Path, mesh: Path | None, common: Sequence[str]) -> list[str]:
    """The arguments of train.py. mesh: the user's mesh, for all tasks but FROM_TEXT. common: options of every
    run.

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
    """The values of --quick, which train.py has for the demo pair only."""
    values = dict(QUICK["appearance"])
    if request.settings.get("appearance.iter"):
        # The number of steps may be smaller than this one.
        del values["coarse_iter"]
    return values


def shell_line(argv: Sequence[str]) -> str:
    """The command as it is typed in a shell."""
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
    """Convert values to options. A text that looks like an option is still passed as a value."""
    found = []
    for key, value in values.items():
        parts = value if isinstance(value, list | tuple) else [value]
        words = [str(part).lower() if isinstance(part, bool) else str(part) for part in parts]
        found += [f"--{key}={words[0]}"] if words[0].startswith("-") else [f"--{key}", *words]
    return found


def _inside(folder: Path) -> str:
    """An out_dir without the leading out/, which train.py adds."""
    return str(folder.relative_to(OUTPUT_ROOT)) if folder.parts[:1] == OUTPUT_ROOT.parts else str(folder)


def _relative(path: str | Path) -> str:
    """A path inside the current directory, relative to it; any other is absolute."""
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return absolute if relative.startswith("..") else relative
