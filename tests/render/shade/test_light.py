"""Test the environment light: config, file selection, shipped map and module."""

import logging
import math
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from render.camera import look_at_origin
from render.image_io.hdr import read_latlong, write_hdr
from render.shade.brdf import linear_to_srgb, shade
from render.shade.cubemap import latlong_directions, texel_directions
from render.shade.light import (
    DEFAULT_MAP,
    MAP_FOLDER,
    REPLACEMENT_SCALE,
    EnvironmentLight,
    LightConfig,
    camera_rotation,
    load_cube,
    load_environment,
    resolve_map,
)
from render.shade.prefilter import prefilter


def test_default_map_is_uniform_and_lights_from_above():
    image = read_latlong(DEFAULT_MAP)
    assert DEFAULT_MAP.stat().st_size <= 512 * 1024 and image.shape == (256, 512, 3)
    weight = torch.sin((torch.arange(256) + 0.5) * math.pi / 256)[:, None, None]
    mean = (image * weight).mean((0, 1)) / weight.mean()
    assert mean.max() / mean.min() < 1.3, "neutral"
    assert image.max() < 20 * mean.mean(), "no sun"
    light = prefilter(load_cube(None, 64), lookups=500_000)
    around = light.diffuse(torch.tensor([[0.0, 0, 1], [0, 0, -1], [1, 0, 0], [-1, 0, 0]])).mean(-1)
    assert around.max() / around.min() < 2.5, "even around the object"
    up, down = light.diffuse(torch.tensor([[0.0, 1, 0], [0, -1, 0]])).mean(-1)
    assert up > 3 * down


def test_map_is_scaled_and_resampled_to_a_cube(tmp_path):
    write_hdr(tmp_path / "sky.hdr", (latlong_directions(64, 128)[..., 1:2] > 0).float().expand(64, 128, 3))
    light = load_environment(LightConfig(envmap=str(tmp_path / "sky.hdr"), env_scale=2.0, env_resolution=64))
    up = texel_directions(64)[..., 1]
    assert (light.cube[up > 0.1] == 2).all() and (light.cube[up < -0.1] == 0).all()


def test_no_map_gives_the_default():
    assert resolve_map(None) == DEFAULT_MAP


def test_map_that_is_not_shipped_gives_the_default_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert resolve_map("data/irrmaps/never_shipped.hdr") == DEFAULT_MAP
        assert resolve_map("data/irrmaps/never_shipped.hdr") == DEFAULT_MAP
        assert resolve_map(str(MAP_FOLDER / "another.hdr")) == DEFAULT_MAP
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "never_shipped.hdr" in caplog.text and "\n" not in caplog.records[0].getMessage()
    assert f"its radiance times {REPLACEMENT_SCALE}" in caplog.text


def test_a_replaced_map_at_env_scale_2_does_not_overexpose_a_sphere_of_albedo_one_half():
    light = load_cube("data/irrmaps/never_shipped.hdr", 64, scale=2.0)
    assert torch.allclose(light, load_cube(None, 64, scale=2 * REPLACEMENT_SCALE))
    normal = torch.nn.functional.normalize(texel_directions(16).reshape(-1, 3), dim=-1)
    prefiltered = prefilter(light, lookups=500_000)
    kd, ks = torch.full_like(normal, 0.5), torch.tensor([0.0, 0.5, 0]).expand_as(normal)
    # Each normal is seen from two directions: along the normal and at 60 degrees to it.
    beside = torch.nn.functional.normalize(torch.linalg.cross(normal, normal.roll(1, -1)), dim=-1)
    for viewer in (normal, 0.5 * normal + 0.75**0.5 * beside):
        colour = linear_to_srgb(shade(kd, ks, normal, viewer, prefiltered))
        assert (colour > 1).float().mean() < 0.005
        assert 0.4 < colour.mean() < 0.75


def test_shipped_map_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_map(f"data/irrmaps/{DEFAULT_MAP.name}") == DEFAULT_MAP


def test_missing_map_elsewhere_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="mine.hdr"):
        load_cube(str(tmp_path / "mine.hdr"), 64)


def test_fixed_light_is_prefiltered_once_and_is_not_in_checkpoints():
    light = EnvironmentLight(torch.rand(6, 64, 64, 3))
    assert light.prefiltered() is light.prefiltered()
    assert not light.state_dict() and not list(light.parameters())


def test_learned_light_follows_the_gradient():
    """A uniform light is fitted to a light that is brighter towards +y.

    The loss compares diffuse lighting.
    """
    target = EnvironmentLight(1 + 0.9 * texel_directions(64)[..., 1:2].expand(6, 64, 64, 3)).prefiltered()
    light = EnvironmentLight(torch.ones(6, 64, 64, 3), learn=True)
    normal = torch.nn.functional.normalize(
        torch.randn(300, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    optimiser = torch.optim.Adam(light.parameters(), lr=0.2)
    losses = []
    for _ in range(5):
        loss = (light.prefiltered().diffuse(normal) - target.diffuse(normal)).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.1 * losses[0]
    assert light.cube.min() > 0 and list(light.state_dict()) == ["log_radiance"]


def test_camera_rotation_equals_the_rotation_of_the_view():
    azimuth, elevation = torch.tensor([0.0, 0.7, 3.0]), torch.tensor([0.0, 0.4, -0.2])
    views = look_at_origin(
        azimuth, elevation, torch.tensor([0.6, 0.7, 0.8]), (48, 64), shift=torch.rand(3, 2)
    )
    rotation = camera_rotation(views.world_to_clip)
    assert torch.allclose(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(3, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(3), atol=1e-5)
    assert torch.allclose(rotation[0], torch.eye(3), atol=1e-6)
    # Without a shift, the rotated position of the camera is on the +z axis.
    still = look_at_origin(azimuth, elevation, torch.full((3,), 0.7), (32, 32))
    in_camera = (camera_rotation(still.world_to_clip) @ still.position[:, :, None])[:, :, 0]
    assert torch.allclose(in_camera, torch.tensor([0.0, 0, 3]).expand(3, 3), atol=1e-5)


@pytest.mark.parametrize(
    "text",
    ['{"env_scale": 0}', '{"env_resolution": 100}', '{"envmap": 3}', '{"learn_light": 1}', '{"env": 1}'],
)
def test_bad_config_values(text):
    with pytest.raises(ValidationError):
        TypeAdapter(LightConfig).validate_json(text, strict=True)


def test_map_folder_is_documented():
    text = (Path(__file__).parents[3] / "data" / "README.md").read_text()
    for path in MAP_FOLDER.iterdir():
        assert path.name in text
