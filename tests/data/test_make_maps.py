"""Test the studio map: it equals the script's output, and its light boxes are in the correct directions."""

import torch

from data.make_maps import BOXES, STUDIO, studio
from render.image_io.hdr import read_latlong
from render.shade.cubemap import latlong_directions


def test_shipped_file_equals_the_script_output():
    made, kept = studio(), read_latlong(STUDIO)
    # RGBE stores all channels of a pixel with the same step size, which is 1/256 to 1/128 of the largest
    # channel.
    assert ((made - kept).abs() <= made.amax(-1, keepdim=True) / 128).all()
    assert kept.min() > 0


def test_boxes_are_the_brightest_directions():
    image, towards = studio(), latlong_directions(64, 128)
    for centre, half_angle, radiance in BOXES:
        axis = torch.nn.functional.normalize(torch.tensor(centre), dim=0)
        middle = image.flatten(0, 1)[(towards.flatten(0, 1) @ axis).argmax()]
        assert torch.allclose(middle, torch.tensor(radiance) + torch.tensor((0.12, 0.12, 0.14)))
        around = image[torch.rad2deg((towards @ axis).acos()).sub(half_angle + 5).abs() < 1]
        assert (around.mean(0) < 0.2 * torch.tensor(radiance)).all()
