"""Writes the guide meshes that configs name as start shapes: `python3 -m data.make_guides` from the root.

A guide is the signed distance of a figure, or of one object of a category of dataset.procedural, march_guide on a
tetrahedral grid. The result is the same on every run; nobody imports this.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dataset.procedural import make_object
from dataset.procedural.figures import HEIGHT, mannequin
from dataset.procedural.solid import REACH, ProceduralObject
from geometry.marching_tets import marching_tetrahedra
from geometry.tet_grid import make_tet_grid
from render.image_io.atomic import write_text

logger = logging.getLogger("data.make_guides")

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Guide:
    """What is march_guide: a solid, the side of the grid's box around the origin, and the cells along it."""

    solid: ProceduralObject
    box: float
    resolution: int
    unit: str = "Units of the scene"


def _of_category(category: str, seed: int, resolution: int) -> Guide:
    """The object of this category that the seed gives, in a box that its REACH fills."""
    solid = make_object(category, torch.Generator().manual_seed(seed))
    return Guide(solid, 2 * REACH * 1.06, resolution)


def guides() -> dict[str, Guide]:
    """Every guide by its path below data/. The seeds are the plainest of the first few."""
    return {
        "person/person.obj": Guide(mannequin(), HEIGHT * 1.06, 92, "Metres"),
        "head/head.obj": _of_category("head", 1, 56),
        "animal/animal.obj": _of_category("quadruped", 6, 80),
        "chair/chair.obj": _of_category("chair", 1, 64),
    }


def march_guide(guide: Guide) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """The zero level as a closed mesh, faces counter-clockwise from outside."""
    grid = make_tet_grid(guide.resolution, guide.box)
    sdf = guide.solid.signed_distance(grid.v_pos)
    return marching_tetrahedra(grid.v_pos, sdf, grid.tets, grid.edges, grid.tet_edges)


def obj_text(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], unit: str) -> str:
    """Positions to a hundred-thousandth and faces, as Wavefront OBJ."""
    lines = [f"# Made by data/make_guides.py. {unit}, up +y, front +z."]
    lines += [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in v_pos.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Overwrites every guide."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name, guide in guides().items():
        path = FOLDER / name
        path.parent.mkdir(exist_ok=True)
        v_pos, faces = march_guide(guide)
        write_text(path, obj_text(v_pos, faces, guide.unit))
        logger.info("%s: %d vertices, %d faces", path, len(v_pos), len(faces))


if __name__ == "__main__":
    main()
