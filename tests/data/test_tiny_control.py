"""Test the shipped ControlNet with the embedded prior on a true shaded view and its depth image."""

import re
from pathlib import Path

import pytest
import torch

from data.make_tiny_sd.renders import DataConfig, ObjectRenderer
from dataset.procedural import make_object
from render.camera import orbit
from render.control_image import control_image
from render.gbuffer import rasterize_gbuffer
from render.shade.brdf import linear_to_srgb, shade
from render.shade.light import LightConfig
from sd.conditions import ViewConditions
from sd.loading.control_folder import load_control_net, resolve_control_net
from sd.stable_diffusion import StableDiffusion

ROOT = Path(__file__).parents[2]
CONTROL = ROOT / "data/tiny-control-depth"
CPU = torch.device("cpu")
TIMES = torch.tensor([100, 300, 500, 700])


@pytest.fixture(scope="module")
def view():
    """Return a shaded view of a chair in [−1, 1] and its depth image in [0, 1], both [1, 3, 128, 128]."""
    renderer = ObjectRenderer(DataConfig(grid=48, environment=LightConfig(env_resolution=64)), CPU)
    subject = make_object("chair", torch.Generator().manual_seed(3))
    mesh, cameras = renderer.mesh(subject), orbit(8, (128, 128)).select(slice(7, 8))
    points = rasterize_gbuffer(mesh, cameras, renderer.rasteriser)
    colours = shade(*subject.material(points.position), points.normal, points.to_viewer, renderer.light)
    shaded = points.scatter(linear_to_srgb(colours).clamp(0, 1)) * 2 - 1
    depth = control_image("depth", points, cameras, mesh, renderer.rasteriser)
    return shaded.permute(0, 3, 1, 2), depth.permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def error(view):
    """Return a function from control image and weight to the mean squared error of the predicted noise."""
    prior = StableDiffusion.from_pretrained(str(ROOT / "data/tiny-sd"), CPU)
    prior.attach_control_net(load_control_net(resolve_control_net(str(CONTROL)), torch.float32))
    generator = torch.Generator().manual_seed(0)
    latent = prior.encode(view[0], torch.randn(1, 4, 32, 32, generator=generator))
    noise = torch.randn(len(TIMES), 4, 32, 32, generator=generator)
    abar = prior.alphas_cumprod[TIMES].view(-1, 1, 1, 1)
    noisy, text = abar.sqrt() * latent + (1 - abar).sqrt() * noise, prior.embed(["a chair"] * len(TIMES))

    @torch.no_grad()
    def of(depth, weight):
        conditions = ViewConditions(None, depth.expand(len(TIMES), -1, -1, -1), torch.tensor(weight))
        return (prior.predict_noise(noisy, TIMES, text, conditions).float() - noise).square().mean().item()

    return of


def test_depth_image_lowers_the_error_about_as_far_as_the_card_states(view, error):
    """The card's errors are means over many views. Half of the stated reduction is required of one view."""
    card = " ".join((CONTROL / "README.md").read_text(encoding="utf-8").split())
    controlled, plain = map(
        float, re.search(r": ([\d.]+) with the ControlNet, ([\d.]+) without", card).groups()
    )
    assert 0 < controlled < plain
    assert error(view[1], 1.0) < (0.5 + 0.5 * controlled / plain) * error(view[1], 0.0)


def test_depth_image_of_the_view_is_better_than_a_mirrored_one(view, error):
    assert error(view[1], 1.0) < 0.9 * error(view[1].flip(3), 1.0)


def test_card_names_the_folder_for_the_config():
    assert '"control_model": "data/tiny-control-depth"' in (CONTROL / "README.md").read_text(encoding="utf-8")
