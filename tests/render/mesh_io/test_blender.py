"""Test that Blender opens GLB and OBJ files with correct textures, +z in front and +y up.

The tests are skipped if Blender is not installed. On Debian, `apt-get install blender python3-numpy` installs
it.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from export_shapes import bumpy_ball
from PIL import Image

from render.mesh_io.write_glb import write_glb
from render.mesh_io.write_obj import write_obj
from render.raster.reference import ReferenceRasteriser
from render.texturing.bake import bake
from render.texturing.uv import unwrap

TOOL = Path(__file__).parents[2] / "helpers" / "render_in_blender.py"
SURFACE = ("Base Color", "Metallic", "Roughness", "Normal")


def sides(points):
    """Return a material with wavy normals and three colours.

    It is red where z is the largest coordinate, green where x is the largest, and blue where y is the
    largest.
    """
    x, y, z = points.unbind(-1)
    main = torch.stack([z, x, y], -1).argmax(-1)
    tilt = torch.stack([0.3 * torch.sin(20 * x), 0.2 * torch.cos(20 * y), torch.ones_like(z)], -1)
    return {
        "kd": 0.05 + 0.85 * torch.nn.functional.one_hot(main, 3).float(),
        "ks": torch.stack([0 * x, 0.6 + 0.3 * torch.sin(6 * x), 0.3 + 0.2 * torch.sin(5 * y)], -1),
        "normal": torch.nn.functional.normalize(tilt, dim=-1),
    }


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Render a mesh in Blender from a GLB and an OBJ. Return the folder, Blender's report and the mesh."""
    if shutil.which("blender") is None:
        pytest.skip("needs Blender on the path")
    folder = tmp_path_factory.mktemp("blender")
    mesh = unwrap(bumpy_ball(3), "xatlas", (256, 256), 4)
    textures = bake(mesh, sides, (256, 256), ReferenceRasteriser())
    files = [folder / "mesh.glb", write_obj(folder, mesh, textures)]
    write_glb(files[0], mesh, textures)
    command = ["blender", "--background", "--factory-startup", "--python-exit-code", "1", "--python", TOOL]
    # Blender uses the system's Python and must not inherit the environment variables of the test's Python.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*command, "--", folder, *files], capture_output=True, text=True, env=environment, timeout=300
    )
    if "No module named 'numpy'" in done.stdout + done.stderr:
        pytest.skip("Blender's own Python needs numpy")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, json.loads((folder / "report.json").read_text()), mesh


def render(folder, kind, view):
    return np.asarray(Image.open(folder / f"{kind}_{view}.png").convert("RGB"), dtype=float) / 255


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_every_picture_has_its_path(opened, kind):
    _, report, mesh = opened
    found = report[f".{kind}"]
    assert {name: picture["size"] for name, picture in found["pictures"].items()} == {
        name: [256, 256] for name in SURFACE
    }
    assert found["faces"] == len(mesh.faces)
    if kind == "glb":
        spaces = [found["pictures"][name]["space"] for name in SURFACE]
        assert spaces == ["sRGB", "Non-Color", "Non-Color", "Non-Color"]


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_front_is_plus_z_right_plus_x_and_up_plus_y(opened, kind):
    folder, report, mesh = opened
    for view, colour in (("front", 0), ("right", 1), ("above", 2)):
        middle = render(folder, kind, view)[40:56, 40:56].mean((0, 1))
        assert middle.argmax() == colour and middle[colour] > np.delete(middle, colour).max() + 0.3, view
    front = render(folder, kind, "front")
    top, right = front[:, 30:60], front[30:60]
    # In the front view, the blue side is above the red side, and the green side is to the right of the red
    # side.
    rows = [np.argmax((top[..., c] - top.mean(-1)).mean(1)) for c in (2, 0)]
    columns = [np.argmax((right[..., c] - right.mean(-1)).mean(0)) for c in (1, 0)]
    assert rows[0] < rows[1] and columns[0] > columns[1]
    # Blender changes the up axis from +y to +z, so (x, y, z) becomes (x, −z, y).
    low, high = mesh.v_pos.amin(0), mesh.v_pos.amax(0)
    assert np.allclose(report[f".{kind}"]["low"], [low[0], -high[2], low[1]], atol=1e-5)
    assert np.allclose(report[f".{kind}"]["high"], [high[0], -low[2], high[1]], atol=1e-5)


@pytest.mark.parametrize("view", ["front", "right", "above"])
def test_glb_and_obj_look_the_same(opened, view):
    folder, _, _ = opened
    one, other = (render(folder, kind, view) for kind in ("glb", "obj"))
    # The two images differ by sampling noise and by the specular colour, which OBJ does not store.
    assert np.abs(one - other).mean() < 0.02
    assert np.abs(one - other[:, ::-1]).mean() > 0.05  # A mirrored image would differ.
