"""Generate the guide meshes that configs use as start shapes.

Run `python3 -m data.make_guides` in the root folder. A guide is the mesh of a figure or an object of
dataset.procedural. The mesh is extracted from a tetrahedral grid. The result is deterministic.
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
    """Input of a guide mesh.

    solid: the object. box: side of the grid's cube, which is centred on the origin. resolution: nominal
    resolution of the grid. unit: unit of length, for the file's comment.
    """

    solid: ProceduralObject
    box: float
    resolution: int
    unit: str = "Units of the scene"


def _of_category(category: str, seed: int, resolution: int) -> Guide:
    """Return the guide for the object of a category with this seed; its box encloses the object closely."""
    solid = make_object(category, torch.Generator().manual_seed(seed))
    return Guide(solid, 2 * REACH * 1.06, resolution)


def guides() -> dict[str, Guide]:
    """Return a dict from the path of each guide in data/ to the guide.

    For each category, the first few seeds were compared. The seed that gives the simplest object is used.
    """
    return {
        "person/person.obj": Guide(mannequin(), HEIGHT * 1.06, 92, "Metres"),
        "head/head.obj": _of_category("head", 1, 56),
        "animal/animal.obj": _of_category("quadruped", 6, 80),
        "chair/chair.obj": _of_category("chair", 1, 64),
    }


def march_guide(guide: Guide) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """Return the object's surface as a closed mesh with faces oriented outwards."""
    grid = make_tet_grid(guide.resolution, guide.box)
    sdf = guide.solid.signed_distance(grid.v_pos)
    return marching_tetrahedra(grid.v_pos, sdf, grid.tets, grid.edges, grid.tet_edges)


def obj_text(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], unit: str) -> str:
    """Return the text of a Wavefront OBJ file with positions rounded to 1e−5."""
    lines = [f"# Made by data/make_guides.py. {unit}, up +y, front +z."]
    lines += [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in v_pos.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all guides."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name, guide in guides().items():
        path = FOLDER / name
        path.parent.mkdir(exist_ok=True)
        v_pos, faces = march_guide(guide)
        write_text(path, obj_text(v_pos, faces, guide.unit))
        logger.info("%s: %d vertices, %d faces", path, len(v_pos), len(faces))


if __name__ == "__main__":
    main()
