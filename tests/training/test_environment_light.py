"""Test the environment light of an appearance run.

The tests cover probe.hdr, the second light, the rows of stills, a learned light and a light in camera space.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import train
from render.camera import orbit
from render.image_io.hdr import read_latlong, write_hdr
from render.mesh import make_mesh
from render.raster.select import choose_rasteriser
from render.scene import AppearanceScene
from render.shade.cubemap import latlong_directions
from render.shade.light import LightConfig, load_environment
from render.shade.material import MaterialConfig, MaterialField

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SIDE = 24
# The map is red on the right, blue on the left and grey elsewhere.
COLOURS = ((1.0, 0, 0), (0, 0, 1.0))


def two_sided(path, scale=1.0):
    towards = latlong_directions(32, 64)
    red, blue = (torch.tensor(colour) for colour in COLOURS)
    right = towards[..., :1]
    light = 0.2 + 3 * right.clamp(min=0) * red + 3 * (-right).clamp(min=0) * blue
    write_hdr(path, light * scale)
    return str(path)


def run(folder, model, name="run", **values):
    """Optimize the appearance of a ball for two steps, and return the output folder."""
    mesh = folder / "ball.ply"
    if not mesh.exists():
        trimesh.creation.icosphere(3, radius=0.7).export(mesh)
    settings = {
        "mode": "appearance_modeling",
        "text": "a ball",
        "sd_model": str(model),
        "out_dir": str(folder / name),
        "base_mesh": str(mesh),
        "device": "cpu",
        "iter": 2,
        "coarse_iter": 1,
        "batch": 2,
        "train_res": [SIDE, SIDE],
        "preview_res": [SIDE, SIDE],
        "texture_res": [64, 64],
        "env_resolution": 64,
        "env_scale": 2.0,
        "hash_n_levels": 3,
        "hash_log2_hashmap_size": 10,
        "hash_max_resolution": 32,
        "guidance_weight": 1,
        "save_interval": 2,
        "video_interval": 0,
        "validate": False,
        "if_use_bump": False,
        "ks_max": [0, 1, 0],
        **values,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(settings))
    assert train.main(["--config", str(path)]) == 0
    return folder / name


def test_probe_is_the_map_times_env_scale_and_relight_gets_its_own_pictures(model_folder, tmp_path):
    first, second = two_sided(tmp_path / "first.hdr"), tmp_path / "second.hdr"
    write_hdr(second, torch.full((32, 64, 3), 0.5))
    out = run(tmp_path, model_folder, envmap=first, relight=str(second), validate=True)
    probe = read_latlong(out / "dmtet_mesh/probe.hdr")
    given = read_latlong(first)
    small = torch.nn.functional.interpolate(probe.permute(2, 0, 1)[None], (32, 64), mode="area")[0]
    assert torch.allclose(small.permute(1, 2, 0), 2 * given, atol=0.15)
    gifs = {path.stem for path in (out / "validate").glob("*.gif")}
    assert gifs == {"shaded", "kd", "ks", "normal", "mask", "relight"}
    frames = {
        name: np.asarray(Image.open(out / f"validate/{name}/000.png")) for name in ("shaded", "relight")
    }
    left, right = (slice(None), slice(4, SIDE // 2 - 2)), (slice(None), slice(SIDE // 2 + 2, SIDE - 4))

    def redness(image, side):
        return float(image[side][..., 0].mean()) - float(image[side][..., 2].mean())

    # In the front view, +x is on the right. Only the first light makes this side red.
    assert redness(frames["shaded"], right) - redness(frames["shaded"], left) > 30
    assert abs(redness(frames["relight"], right) - redness(frames["relight"], left)) < 10
    assert len(list((out / "validate/relight").glob("*.png"))) == 100


def test_the_rows_of_display_are_in_order_and_the_map_is_among_them(model_folder, tmp_path):
    panels = [{"latlong": True}, {"bsdf": "normal"}, {"bsdf": "kd"}, {"bsdf": "ks"}]
    out = run(tmp_path, model_folder, envmap=two_sided(tmp_path / "sky.hdr", 0.3), display=panels)
    still = np.asarray(Image.open(out / "stills/000002.png")).astype(int)
    assert still.shape == (5 * SIDE, 4 * SIDE, 3)
    rows = still.reshape(5, SIDE, 4 * SIDE, 3)
    sky = rows[1, :, : 2 * SIDE]
    # The centre of the map is −z. The map is red on the right (+x) and blue on the left. The rest of this row
    # is white.
    assert sky[SIDE // 2, 3 * SIDE // 2, 0] > sky[SIDE // 2, 3 * SIDE // 2, 2] + 50
    assert sky[SIDE // 2, SIDE // 2, 2] > sky[SIDE // 2, SIDE // 2, 0] + 50
    assert (rows[1, :, 2 * SIDE :] == 255).all()
    # The centre of the ball faces the camera, which is 20° above the front. Metallic and occlusion are 0
    # because of ks_max.
    facing = np.array([0, np.sin(np.radians(20)), np.cos(np.radians(20))])
    assert np.abs(rows[2, SIDE // 2, SIDE // 2] - 127.5 * (facing + 1)).max() < 16
    middle = rows[4, SIDE // 2, SIDE // 2]
    assert middle[0] == middle[2] == 0 and middle[1] > 0


def test_learned_light_changes_and_is_exported_with_usd(model_folder, tmp_path):
    sky = two_sided(tmp_path / "sky.hdr")
    fixed = run(tmp_path, model_folder, "fixed", envmap=sky)
    pytest.importorskip("pxr", reason="export_usd needs usd-core")
    learned = run(
        tmp_path, model_folder, "learned", envmap=sky, learn_light=True, learning_rate=0.1, export_usd=True
    )
    assert (learned / "dmtet_mesh/mesh.usd").stat().st_size > 0
    assert not (fixed / "dmtet_mesh/mesh.usd").exists()
    probes = [read_latlong(out / "dmtet_mesh/probe.hdr") for out in (fixed, learned)]
    assert (probes[0] / probes[1]).log().abs().mean() > 0.02


@pytest.mark.parametrize("follows", [False, True])
def test_a_light_in_camera_space_turns_with_the_camera(tmp_path, follows):
    ball = trimesh.creation.icosphere(4, radius=0.7)
    mesh = make_mesh(torch.tensor(ball.vertices.copy()).float(), torch.tensor(ball.faces.copy()).long())
    config = LightConfig(envmap=two_sided(tmp_path / "sky.hdr"), env_resolution=64)
    material = MaterialField(
        MaterialConfig(if_use_bump=False), torch.full((3,), -1.0), torch.full((3,), 1.0), 2, 6, 16
    )
    with torch.no_grad():
        material.encoding.table.zero_()  # makes the material constant
    rasteriser = choose_rasteriser(CPU, "auto")
    scene = AppearanceScene(
        mesh, material, load_environment(config), rasteriser, light_follows_camera=follows
    )
    shaded = scene.layers(orbit(4, (SIDE, SIDE), 0.0, 45.0))["shaded"]
    difference = functools.reduce(torch.maximum, (abs(shaded[0] - view) for view in shaded[1:]))
    assert (difference.mean() < 0.02) == follows
