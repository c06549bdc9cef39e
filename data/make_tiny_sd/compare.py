"""Show finished runs next to procedural objects like those in the embedded prior's training data.

    python3 -m data.make_tiny_sd.compare --out mug.png mug=out/mug,out/mug_appearance

Each CATEGORY=GEOMETRY,APPEARANCE gives one row: a random object of the category with its original colours,
the normals of the geometry run, and the result of the appearance run. The normals and the result are frames
of the runs' turntables in validate/.
"""

import argparse
import sys
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from data.make_tiny_sd.renders import DataConfig, ObjectRenderer
from dataset.procedural import CATEGORIES, make_object
from render.camera import orbit
from render.gbuffer import rasterize_gbuffer
from render.image_io.image import grid, read_image, write_png
from render.scene import pictures
from render.shade.brdf import linear_to_srgb, shade

# Numbers of the shown frames of a turntable, which has 100 frames: 0 is the front, 15 the view after 54
# degrees.
FRAMES = (0, 15)


@torch.no_grad()
def reference(category: str, renderer: ObjectRenderer, seed: int, side: int) -> list[Float[Tensor, "S S 3"]]:
    """Render a random object of the category, shaded on white, from the cameras of the turntable FRAMES."""
    subject = make_object(category, torch.Generator().manual_seed(seed))
    mesh = renderer.mesh(subject)
    found, cameras = [], orbit(100, (side, side))
    for frame in FRAMES:
        points = rasterize_gbuffer(mesh, cameras.select(slice(frame, frame + 1)), renderer.rasteriser)
        kd, ks = subject.material(points.position)
        shaded = linear_to_srgb(shade(kd, ks, points.normal, points.to_viewer, renderer.light))
        found.append(pictures({"shaded": shaded}, points, mesh, renderer.rasteriser)["shaded"][0])
    return found


def frames(folder: Path, layer: str) -> list[Float[Tensor, "S S 3"]]:
    """Return the turntable frames FRAMES of a finished run.

    Raises:
        FileNotFoundError: if the run has no such frames, because it is unfinished or validate is false.
    """
    return [read_image(folder / "validate" / layer / f"{frame:03d}.png") for frame in FRAMES]


def crop(images: list[Float[Tensor, "S S 3"]]) -> list[Float[Tensor, "s s 3"]]:
    """Return the smallest central square of the images that contains everything that is not white."""
    size = len(images[0])
    margin = size // 2 - 1
    for image in images:
        rows, columns = (image < 0.99).any(-1).nonzero(as_tuple=True)
        for index in (rows, columns):
            if len(index):
                margin = min(margin, int(index.min()), size - 1 - int(index.max()))
    return [image[margin : size - margin, margin : size - margin] for image in images]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="data.make_tiny_sd.compare", description=__doc__.split("\n")[0])
    parser.add_argument(
        "runs", nargs="+", metavar="CATEGORY=GEOMETRY,APPEARANCE", help=f"CATEGORY of {', '.join(CATEGORIES)}"
    )
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--seed", type=int, default=3, help="seed of the reference objects")
    options = parser.parse_args(arguments)
    renderer = ObjectRenderer(DataConfig(), torch.device("cpu"))
    cells = []
    for run in options.runs:
        category, _, folders = run.partition("=")
        geometry, _, appearance = folders.partition(",")
        try:
            normals = frames(Path(geometry), "normal")
            painted = frames(Path(appearance), "shaded")
            cells += [*reference(category, renderer, options.seed, normals[0].shape[0]), *normals, *painted]
        except (ValueError, FileNotFoundError) as error:
            parser.error(str(error))
    write_png(options.out, grid(crop(cells), columns=3 * len(FRAMES)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
