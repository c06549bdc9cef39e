"""Generate the environment map `studio.hdr`: `python3 -m data.make_maps` in the root folder.

The map is a dark studio with a warm soft box at the upper left in front of the object, a cool soft box at the
right behind it, and dim ambient light. Unlike the uniform default map, it shows the effects of roughness and
metallic.
"""

import logging
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from render.image_io.hdr import write_hdr
from render.shade.cubemap import latlong_directions

logger = logging.getLogger("data.make_maps")

STUDIO = Path(__file__).parent / "irrmaps/studio.hdr"
SIZE = (64, 128)
AMBIENT = (0.12, 0.12, 0.14)
# Soft boxes: (direction towards the box, half angle in degrees, radiance).
BOXES = (
    ((-0.7, 0.6, 0.8), 22.0, (9.0, 7.6, 6.0)),
    ((0.9, 0.3, -0.6), 16.0, (2.4, 3.4, 5.2)),
)
EDGE = 6.0  # width of the fade at the edge of a box, degrees


def studio() -> Float[Tensor, "H W 3"]:
    """Return the map as linear radiance."""
    towards = latlong_directions(*SIZE)
    image = torch.tensor(AMBIENT).expand(*SIZE, 3).clone()
    for centre, half_angle, radiance in BOXES:
        axis = torch.nn.functional.normalize(torch.tensor(centre), dim=0)
        away = torch.rad2deg((towards @ axis).clamp(-1, 1).acos())
        inside = ((half_angle + EDGE / 2 - away) / EDGE).clamp(0, 1)
        image += (inside * inside * (3 - 2 * inside))[:, :, None] * torch.tensor(radiance)
    return image


def main() -> None:
    """Write the map to the file STUDIO."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_hdr(STUDIO, studio())
    logger.info("%s: %d x %d pixels", STUDIO, SIZE[1], SIZE[0])


if __name__ == "__main__":
    main()
