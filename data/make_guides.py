"""Writes the guide meshes that configs name as start shapes: `python3 -m data.make_guides` from the root.

A guide is a signed distance of dataset.objects.figures, marched on a tetrahedral grid. The result is the
same on every run; nobody imports this.
"""

import logging
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from dataset.objects.figures import HEIGHT, mannequin
from dataset.objects.solid import ProceduralObject
from geometry.marching_tets import marching_tetrahedra
from geometry.tet_grid import make_tet_grid
from render.export.atomic import write_text

logger = logging.getLogger("data.make_guides")

FOLDER = Path(__file__).parent
# The box around the figure, metres, and the grid in it.
BOX, RESOLUTION = HEIGHT * 1.06, 92


def guide(figure: ProceduralObject) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """The zero level as a closed mesh, faces counter-clockwise from outside."""
    grid = make_tet_grid(RESOLUTION, BOX)
    sdf = figure.signed_distance(grid.v_pos)
    return marching_tetrahedra(grid.v_pos, sdf, grid.tets, grid.edges, grid.tet_edges)


def obj_text(v_pos: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> str:
    """Positions to a hundredth of a millimetre and faces, as Wavefront OBJ."""
    lines = ["# Made by data/make_guides.py. Metres, up +y, front +z."]
    lines += [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in v_pos.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Overwrites data/person/person.obj."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = FOLDER / "person" / "person.obj"
    v_pos, faces = guide(mannequin())
    write_text(path, obj_text(v_pos, faces))
    logger.info("%s: %d vertices, %d faces", path, len(v_pos), len(faces))


if __name__ == "__main__":
    main()
