"""The studio map: as the script makes it, its boxes where they should stand."""

import torch

from data.make_maps import BOXES, STUDIO, studio
from render.image_io.hdr import read_latlong
from render.shade.cubemap import latlong_directions


def test_the_shipped_file_is_what_the_script_writes():
    made, kept = studio(), read_latlong(STUDIO)
    # RGBE keeps a pixel's largest channel to 1 part in 256, and the others to that step.
    assert ((made - kept).abs() <= made.amax(-1, keepdim=True) / 128).all()
    assert kept.min() > 0


def test_each_box_is_brightest_where_it_stands():
    image, towards = studio(), latlong_directions(64, 128)
    for centre, half_angle, radiance in BOXES:
        axis = torch.nn.functional.normalize(torch.tensor(centre), dim=0)
        middle = image.flatten(0, 1)[(towards.flatten(0, 1) @ axis).argmax()]
        assert torch.allclose(middle, torch.tensor(radiance) + torch.tensor((0.12, 0.12, 0.14)))
        around = image[torch.rad2deg((towards @ axis).acos()).sub(half_angle + 5).abs() < 1]
        assert (around.mean(0) < 0.2 * torch.tensor(radiance)).all()
