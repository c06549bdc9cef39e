"""Render the picture in render/README.md: a shaded object, and its control images for a ControlNet.

python3 -m data.make_control_picture --out assets/control_images.png
"""

import argparse
import sys
from pathlib import Path

import torch

from data.make_tiny_sd.renders import DataConfig, ObjectRenderer
from dataset.procedural import CATEGORIES, make_object
from render.camera import orbit
from render.control_image import control_image
from render.gbuffer import rasterize_gbuffer
from render.image_io.image import grid, write_png
from render.scene import pictures
from render.shade.brdf import linear_to_srgb, shade


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="data.make_control_picture", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--category", choices=CATEGORIES, default="chair", metavar="CATEGORY")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--grid", type=int, default=96, help="resolution of the grid that meshes the object")
    parser.add_argument("--side", type=int, default=192, help="pixels per image")
    options = parser.parse_args(arguments)
    renderer = ObjectRenderer(DataConfig(grid=options.grid), torch.device("cpu"))
    subject = make_object(options.category, torch.Generator().manual_seed(options.seed))
    mesh, cameras = renderer.mesh(subject), orbit(8, (options.side, options.side)).select(slice(7, 8))
    points = rasterize_gbuffer(mesh, cameras, renderer.rasteriser)
    shaded = shade(*subject.material(points.position), points.normal, points.to_viewer, renderer.light)
    layers = pictures({"shaded": linear_to_srgb(shaded)}, points, mesh, renderer.rasteriser)
    control = (
        control_image(kind, points, cameras, mesh, renderer.rasteriser) for kind in ("depth", "normal")
    )
    write_png(options.out, grid([layers["shaded"][0], *(image[0] for image in control)], columns=3))
    return 0


if __name__ == "__main__":
    sys.exit(main())
