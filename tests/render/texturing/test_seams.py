"""Test that exported files have no visible seams: renders from 8 sides equal those of the baked field.

The asset is a procedural pineapple with the encoding and the bounds of the demo. Its material varies at least
as strongly as a trained one. The asset is written as OBJ, MTL and 8-bit PNG, read again and rendered.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.json_file import read_object
from configs.schema import parse_config
from dataset.procedural import make_object
from geometry.marching_tets import marching_tetrahedra
from geometry.tet_grid import make_tet_grid
from render.camera import orbit
from render.mesh import Mesh, make_mesh
from render.mesh_io.load import load_mesh
from render.mesh_io.write_obj import write_obj
from render.raster.select import choose_rasteriser
from render.scene import AppearanceScene
from render.shade.light import load_environment
from render.shade.material import Material, MaterialField
from render.shade.normals import safe_normalize
from render.texturing.bake import bake
from render.texturing.uv import tangents, unwrap

ROOT = Path(__file__).parents[3]
TEXTURE = (1024, 1024)
VIEWS = orbit(8, (192, 192), 20.0, 45.0)


class BakedScene(AppearanceScene):
    """A scene that samples its material bilinearly from textures, as a viewer does."""

    def __init__(self, folder, scene):
        file = load_mesh(folder / "mesh.obj")
        mesh = make_mesh(file.v_pos, file.faces)
        mesh = Mesh(mesh.v_pos, mesh.faces, mesh.v_nrm, file.uv, file.uv_faces)
        mesh = Mesh(mesh.v_pos, mesh.faces, mesh.v_nrm, mesh.uv, mesh.uv_faces, tangents(mesh))
        super().__init__(mesh, scene.material, scene.light, scene.rasteriser)
        for name in ("kd", "ks", "n"):
            pixels = np.asarray(Image.open(folder / f"texture_{name}.png").convert("RGB"))
            self.register_buffer(name, torch.from_numpy(pixels.copy()).float() / 255)

    def lookup(self, image, uv):
        grid = uv[None, None] * 2 - 1
        image = image.permute(2, 0, 1)[None]
        return torch.nn.functional.grid_sample(image, grid, align_corners=False, padding_mode="border")[
            0, :, 0
        ].T

    def _surface(self, points):
        uv = points.gather(self.rasteriser.interpolate(self.mesh.uv, points.rast, self.mesh.uv_faces))
        # This scene decodes sRGB before filtering, as viewers do.
        srgb = self.kd
        linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        local = safe_normalize(self.lookup(self.n, uv) * 2 - 1)
        return Material(self.lookup(linear, uv), self.lookup(self.ks, uv), local), self._bumped(points, local)


def psnr(a, b, where):
    """Return the PSNR in dB over the pixels of the object. Background pixels would increase the value."""
    error = (a - b)[where[..., 0]].square().mean()
    return -10 * torch.log10(error).item()


@pytest.fixture(scope="module", params=["xatlas", "uvunwrap", "projection"])
def pair(request, tmp_path_factory):
    """Return the original scene, and the scene that is read from its exported files."""
    values = read_object(ROOT / "configs/pineapple_demo_appearance.json")
    config = parse_config({**values, "env_resolution": 64}, "demo")
    solid = make_object("pineapple", torch.Generator().manual_seed(3))
    grid = make_tet_grid(48, 1.7)
    sdf = solid.signed_distance(grid.v_pos)
    surface = make_mesh(*marching_tetrahedra(grid.v_pos, sdf, grid.tets, grid.edges, grid.tet_edges))
    rasteriser = choose_rasteriser(torch.device("cpu"), "auto")
    mesh = unwrap(surface, request.param, TEXTURE, config.export.uv_padding_block)
    torch.manual_seed(0)
    encoding = (
        config.geometry.hash_n_levels,
        config.geometry.hash_log2_hashmap_size,
        config.geometry.hash_max_resolution,
    )
    material = MaterialField(config.material, torch.full((3,), -0.85), torch.full((3,), 0.85), *encoding)
    # The test is strict: the random material varies more strongly and at a finer scale than a trained one.
    with torch.no_grad():
        material.encoding.table.uniform_(-1, 1)
        for layer in (material.network[0], material.network[2]):
            layer.weight.mul_(2)
    scene = AppearanceScene(mesh, material, load_environment(config.light), rasteriser)

    def field(positions):
        found = material(positions)
        return {"kd": found.kd, "ks": found.ks, "normal": found.normal}

    folder = tmp_path_factory.mktemp("baked")
    write_obj(folder, mesh, bake(mesh, field, TEXTURE, rasteriser))
    return scene, BakedScene(folder, scene)


def test_exported_files_render_like_the_field(pair):
    painted, baked = (scene.layers(VIEWS) for scene in pair)
    seen = painted["mask"] > 0.99
    # Colour and roughness vary on the object, so the comparison of the two renders is meaningful.
    assert painted["kd"][seen[..., 0]].std() > 0.15 and painted["ks"][..., 1][seen[..., 0]].std() > 0.1
    for name in ("shaded", "kd", "ks", "normal"):
        each = [psnr(painted[name][k], baked[name][k], seen[k]) for k in range(8)]
        # Differences are visible if the PSNR is below 35 dB. The PSNR is 54 dB with gutters and 31 dB without
        # gutters.
        assert min(each) >= 45, (name, each)
