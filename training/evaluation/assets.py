"""Finished runs: find their prompts, and load their exported meshes and textures."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from configs.modes import MODES
from configs.run import MESH_FILE
from dataset.procedural.materials import MATERIALS
from geometry.fixed_mesh import load_fixed_mesh
from render.gbuffer import SurfacePoints
from render.image_io.image import read_image
from render.mesh import Mesh
from render.mesh_io.write_obj import KD_FILE, KS_FILE, NORMAL_FILE
from render.raster.interface import Rasteriser
from render.shade.brdf import srgb_to_linear
from render.shade.normals import bump
from render.texturing.uv import tangents
from training.evaluation.views import Paint


@dataclass(frozen=True)
class Target:
    """Category and material in a prompt. material is None if the prompt contains no material."""

    category: str
    material: str | None


@dataclass(frozen=True)
class Run:
    """The folder of a run, its prompt, and the target in the prompt.

    domain: "shaded" for an asset with textures, "normal" for a shape without textures. steps: step of the
    last checkpoint, None if there is no checkpoint.
    """

    folder: Path
    prompt: str
    target: Target
    domain: str
    steps: int | None = None

    @property
    def mesh_file(self) -> Path:
        return self.folder / MESH_FILE


@dataclass(frozen=True)
class Textures:
    """Textures of an asset.

    kd: linear albedo. ks: (occlusion, roughness, metallic). normal: tangent space in [−1, 1]. ks and normal
    are None if the export has no such texture.
    """

    kd: Float[Tensor, "H W 3"]
    ks: Float[Tensor, "H2 W2 3"] | None
    normal: Float[Tensor, "H3 W3 3"] | None


def find_run(argument: str, categories: tuple[str, ...]) -> Run:
    """Return the run of an argument FOLDER or FOLDER=PROMPT.

    Without PROMPT, use the prompt in the checkpoint.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if there is no prompt, or if it contains none of the categories.
    """
    name, given, prompt = argument, "", ""
    before, sign, after = argument.rpartition("=")
    # Folder names of a sweep may contain "=", so PROMPT is split off only if the whole argument is not a
    # folder.
    if before and Path(before).is_dir() and not Path(argument).is_dir():
        name, given, prompt = before, sign, after
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"run {name} does not exist; name the out_dir of a run")
    settings, steps = _last_state(folder)
    if not given:
        prompt = settings.get("text", "")
    if not prompt:
        raise ValueError(f"run {name} has no checkpoint with a prompt; give it as '{name}=A red mug'")
    textures = (folder / MESH_FILE).parent / KD_FILE
    painted = MODES[settings["mode"]].paints_base_mesh if "mode" in settings else textures.is_file()
    return Run(folder, prompt, parse_target(prompt, categories), "shaded" if painted else "normal", steps)


def _last_state(folder: Path) -> tuple[dict, int | None]:
    """Return settings and step of the newest checkpoint, or ({}, None) if there is no checkpoint."""
    states = sorted(folder.glob("checkpoints/step_*/state.json"))
    if not states:
        return {}, None
    state = json.loads(states[-1].read_text(encoding="utf-8"))
    return state["meta"]["settings"], state["step"]


def parse_target(prompt: str, categories: tuple[str, ...]) -> Target:
    """Find the longest category name in the prompt, and the first material in the rest of the prompt.

    A material is given as its adjective, or as "made of" and its noun ("made of wood", "made out of gold").

    Raises:
        ValueError: if the prompt contains no category.
    """
    text = " ".join(re.findall(r"\w+", prompt.lower()))
    found = {category: re.search(rf"\b{category.replace('_', ' ')}\b", text) for category in categories}
    named = [category for category, match in found.items() if match]
    if not named:
        raise ValueError(
            f"prompt {prompt!r}names no category of the classifier; give a prompt with one of "
            f"{', '.join(category.replace('_', ' ') for category in categories)} as FOLDER=PROMPT"
        )
    category = max(named, key=len)
    rest = text[: found[category].start()] + "|" + text[found[category].end() :]
    positions = {}
    for name, material in MATERIALS.items():
        words = [re.escape(material.adjective)]
        if material.substance:
            words.append(rf"made (?:out )?of {re.escape(material.substance)}")
        if match := re.search(rf"\b(?:{'|'.join(words)})\b", rest):
            positions[name] = match.start()
    return Target(category, min(positions, key=positions.get) if positions else None)


def missing_mesh_reason(run: Run) -> str | None:
    """Return the reason why a run cannot be evaluated, or None if it can."""
    if run.mesh_file.is_file():
        return None
    how_far = "no checkpoint" if run.steps is None else f"last checkpoint at step {run.steps}"
    return f"no mesh (surface vanished, or run stopped); {how_far}"


def load_asset(run: Run, device: torch.device) -> tuple[Mesh, Textures | None]:
    """Load the exported mesh and its textures to the device.

    Raises:
        ValueError, OSError: if a file cannot be read. The message contains the file and its fault.
    """
    mesh = load_fixed_mesh(run.mesh_file)
    mesh = replace(mesh, v_pos=mesh.v_pos.float()).to(device)
    if run.domain == "normal":
        return mesh, None
    if mesh.uv is None:
        raise ValueError(f"mesh file {run.mesh_file} has a texture but no texture coordinates")
    folder = run.mesh_file.parent

    def image(name: str) -> Tensor | None:
        return read_image(folder / name).to(device) if (folder / name).is_file() else None

    normal = image(NORMAL_FILE)
    textures = Textures(
        kd=srgb_to_linear(read_image(folder / KD_FILE).to(device)),
        ks=image(KS_FILE),
        normal=None if normal is None else normal * 2 - 1,
    )
    return replace(mesh, tangents=tangents(mesh)), textures


def textured(mesh: Mesh, textures: Textures, rasteriser: Rasteriser) -> Paint:
    """Return a Paint function for `render_views` that samples the textures."""

    def paint(points: SurfacePoints) -> tuple[Tensor, Tensor, Tensor]:
        uv = rasteriser.interpolate(mesh.uv, points.rast, mesh.uv_faces)

        def at_points(texture: Tensor) -> Tensor:
            return points.gather(rasteriser.texture(texture, uv))

        kd, normal = at_points(textures.kd), points.normal
        ks = kd.new_tensor([0.0, 0.9, 0.0]).expand_as(kd)
        if textures.ks is not None:
            ks = at_points(textures.ks)
        if textures.normal is not None:
            tangent = rasteriser.interpolate(mesh.tangents, points.rast, mesh.uv_faces)
            normal = bump(normal, points.gather(tangent), at_points(textures.normal))
        return kd, ks, normal

    return paint
