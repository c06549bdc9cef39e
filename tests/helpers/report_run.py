"""Write the output folder of a run at toy size, and parse HTML pages, for tests of the report."""

import json
from html.parser import HTMLParser
from pathlib import Path

import torch
import trimesh

from render.image_io.image import write_mp4, write_png
from render.mesh import Mesh, make_mesh
from render.mesh_io.write_glb import write_glb
from render.raster.reference import ReferenceRasteriser
from render.texturing.bake import bake
from render.texturing.uv import unwrap
from training.report.run_page import RunInfo, Setting

STILL = 40
NASTY = "</title></script><script>alert(1)</script>\"'&<b onclick=x>"


VOID = {"meta", "link", "img", "input"}


class Reader(HTMLParser):
    """Parse a page into its elements and their text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self._open = [], {}, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, text):
        if not self._open:
            return
        self.texts[self._open[-1]] = self.texts.get(self._open[-1], "") + text


def egg() -> Mesh:
    """Return a closed off-centre surface with a different extent along each axis."""
    ball = trimesh.creation.icosphere(2)
    vertices = torch.tensor(ball.vertices, dtype=torch.float32) * torch.tensor([0.5, 0.8, 0.6]) + 0.1
    return make_mesh(vertices, torch.tensor(ball.faces))


def smooth_field(positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return kd, ks and perturbed normals, which vary smoothly with position."""
    wave = torch.sin(4 * positions)
    normal = torch.nn.functional.normalize(torch.cat([0.2 * wave[:, :2], torch.ones_like(wave[:, :1])], -1))
    return {"kd": 0.5 + 0.4 * wave, "ks": 0.5 + 0.3 * wave, "normal": normal}


def write_run(folder: Path, steps: int = 100, stills: int = 5) -> Path:
    """Write log.jsonl, stills, a turntable and a textured GLB to `folder`."""
    lines = [
        {"step": k, "phase": "coarse", "seconds": k / 4, "loss": 100 / k, "gradient_norm": 1.0 + k % 3}
        for k in range(1, steps + 1)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number in range(1, stills + 1):
        image = torch.full((2 * STILL, 4 * STILL, 3), number / stills)
        path = folder / "stills" / f"{number * steps // stills:06d}.png"
        write_png(path, image, {"rows": "shaded,normal"})
    frames = (torch.full((16, 16, 3), k * 20, dtype=torch.uint8).numpy() for k in range(10))
    write_mp4(folder / "turntable.mp4", frames)
    mesh = unwrap(egg(), "xatlas", (64, 64), 2)
    textures = bake(mesh, smooth_field, (64, 64), ReferenceRasteriser())
    write_glb(folder / "dmtet_mesh/mesh.glb", mesh, textures)
    return folder


def example_info(folder: Path, title: str = "A mug", last_step: int = 100) -> RunInfo:
    settings = [
        Setting("iter", "100", "5000", "number of steps", True),
        Setting("seed", "42", "42", "the same seed gives the same result", False),
    ]
    commands = {"Again": "python3 train.py --config a.json"}
    return RunInfo(folder, title, "material", last_step, True, settings, commands, {"Python": "3.11"}, "{}\n")
