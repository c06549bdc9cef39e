"""Compare scenes with closed forms: signs of flipped normals, shading normals and antialiased colours."""

import dataclasses

import pytest
import torch
import trimesh
from torch import nn

from dataset.cameras import CameraConfig, sample_cameras, step_generator
from render import gbuffer
from render import scene as scene_module
from render.camera import orbit
from render.control_image import control_image
from render.gbuffer import rasterize_gbuffer
from render.mesh import make_mesh
from render.raster.select import choose_rasteriser
from render.scene import AppearanceScene, GeometryScene
from render.shade.brdf import linear_to_srgb
from render.shade.light import EnvironmentLight
from render.shade.material import Material, MaterialField
from render.shade.normals import shading_normal
from render.shade.prefilter import prefilter

SIDE = 32
EVEN_LIGHT = EnvironmentLight(torch.ones(6, 64, 64, 3))
EVEN_LIGHT._prefiltered = prefilter(EVEN_LIGHT.cube, lookups=100_000)


class Surface(nn.Module):
    def __init__(self, mesh):
        super().__init__()
        self.mesh = lambda: mesh


class RandomBumps(MaterialField):
    """A white material with unit tangent-space normals that are tilted by up to 90° in any direction."""

    def __init__(self):
        nn.Module.__init__(self)
        self.bumpy = True

    def forward(self, positions):
        generator = torch.Generator().manual_seed(5)
        normal = torch.randn(len(positions), 3, generator=generator)
        normal[:, 2] = 0.1 * normal[:, 2].abs()
        white = torch.ones_like(positions)
        return Material(
            white, torch.tensor([0.0, 1, 0]).expand_as(white), nn.functional.normalize(normal, dim=-1)
        )


class White(MaterialField):
    """A material with diffuse albedo 1 and no normal map."""

    def __init__(self):
        nn.Module.__init__(self)
        self.bumpy = False

    def forward(self, positions):
        white = torch.ones_like(positions)
        return Material(white, torch.tensor([0.0, 1, 0]).expand_as(white), white)


def ball(subdivisions=3):
    shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.7)
    return make_mesh(torch.tensor(shape.vertices).float(), torch.tensor(shape.faces))


def with_tangents(mesh):
    """Return the mesh with one tangent per vertex, which points along a circle of latitude."""
    x, _, z = mesh.v_pos.unbind(-1)
    tangents = nn.functional.normalize(torch.stack([z, torch.zeros_like(x), -x], dim=-1), dim=-1)
    return dataclasses.replace(mesh, uv=mesh.v_pos[:, :2], uv_faces=mesh.faces, tangents=tangents)


def test_flip_normal_leaves_no_positive_x_component():
    """After the rotation, the flip replaces x by −|x|, also at pixels of the outline."""
    views = sample_cameras(CameraConfig(), 6, (SIDE, SIDE), step_generator(0, 0, 1), rotate_normals=True)
    rasteriser = choose_rasteriser(torch.device("cpu"))
    flipped, plain = (
        GeometryScene(Surface(ball()), rasteriser, EVEN_LIGHT, flip_normal=flip)(views)
        for flip in (True, False)
    )
    assert (flipped[..., 0] <= 0).all()
    assert (plain[..., 0] > 0.5).sum() > 100
    inside = plain[..., 3] == 1
    assert torch.allclose(flipped[..., 0][inside], -plain[..., 0][inside].abs(), atol=0.05)
    assert torch.equal(flipped[..., 1:], plain[..., 1:])


def test_bumped_normals_face_the_viewer():
    views = orbit(3, (SIDE, SIDE))
    rasteriser = choose_rasteriser(torch.device("cpu"))
    # If `outward`, the front side of the faces is visible, otherwise the back side.
    for outward in (True, False):
        mesh = with_tangents(ball(1))
        mesh = mesh if outward else dataclasses.replace(mesh, faces=mesh.faces.flip(1), v_nrm=-mesh.v_nrm)
        scene = AppearanceScene(mesh, RandomBumps(), EVEN_LIGHT, rasteriser)
        points = rasterize_gbuffer(mesh, views, rasteriser)
        material, normal = scene.material_and_normal(points)
        cosine = (normal * points.to_viewer).sum(-1)
        assert torch.allclose(normal.norm(dim=-1), torch.ones(len(normal)), atol=1e-5)
        assert cosine.min() > -1e-5 and (cosine < 0.3).sum() > 20
        # Many normals differ from the smooth normals, so the bump map has an effect.
        assert ((normal * points.normal).sum(-1) < 0.7).float().mean() > 0.3


@pytest.mark.parametrize("material", [RandomBumps(), White()], ids=["bumpy", "smooth"])
def test_shading_normals_are_computed_once(material, monkeypatch):
    calls = []
    for module in (gbuffer, scene_module):
        monkeypatch.setattr(
            module, "shading_normal", lambda *given: calls.append(1) or shading_normal(*given)
        )
    scene = AppearanceScene(with_tangents(ball(1)), material, EVEN_LIGHT, choose_rasteriser("cpu"))
    views = orbit(2, (SIDE, SIDE))
    scene(views)
    scene.layers(views)
    assert len(calls) == 2
    # The control image shows normals without the bump map.
    points = rasterize_gbuffer(scene.mesh, views, scene.rasteriser)
    expected = control_image("normal", points, views, scene.mesh, scene.rasteriser)
    scene(views)
    assert torch.allclose(scene.control_image("normal", views), expected, atol=1e-6)


def test_fixed_layers_are_the_layers_of_one_mesh():
    """The mesh is extracted once for all views, and the pictures are the same."""
    rasteriser, views = choose_rasteriser("cpu"), orbit(3, (SIDE, SIDE))
    extracted = []
    surface = Surface(ball(1))
    mesh = surface.mesh
    surface.mesh = lambda: extracted.append(1) or mesh()
    painted = AppearanceScene(with_tangents(ball(1)), White(), EVEN_LIGHT, rasteriser)
    for scene in (GeometryScene(surface, rasteriser, EVEN_LIGHT, False), painted):
        expected = scene.layers(views)
        extracted.clear()
        render = scene.fixed_layers()
        parts = [render(views.select(slice(k, k + 1))) for k in range(3)]
        assert len(extracted) == (scene is not painted)
        assert expected.keys() == parts[0].keys()
        for name, images in expected.items():
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("material", [RandomBumps(), White()], ids=["bumpy", "smooth"])
def test_prepared_views_give_the_same_image(material, monkeypatch):
    scene = AppearanceScene(with_tangents(ball(1)), material, EVEN_LIGHT, choose_rasteriser("cpu"))
    views, other = orbit(2, (SIDE, SIDE)), orbit(3, (SIDE, SIDE), 30.0)
    expected_other, expected, pixels = scene(other), scene(views), scene.visible[1]
    calls = []
    for name in ("rasterize", "rasterize_gbuffer"):
        real = getattr(scene_module, name)
        monkeypatch.setattr(scene_module, name, lambda *given, real=real: calls.append(real) or real(*given))
    scene.prepare(views)
    assert torch.equal(scene(views), expected) and torch.equal(scene.visible[1], pixels)
    assert len(calls) == 1 and (scene.points.normal is None) == material.bumpy
    # The result is used once, and not for other views.
    assert torch.equal(scene(views), expected) and len(calls) == 2
    scene.prepare(views)
    assert torch.equal(scene(other), expected_other) and len(calls) == 4


def test_outline_is_antialiased_on_linear_colours():
    """For white on black, an outline pixel with coverage c is sRGB(c · white) and not c · sRGB(white)."""
    views = orbit(1, (SIDE, SIDE))
    rasteriser = choose_rasteriser(torch.device("cpu"))
    mesh = with_tangents(ball())
    for background in (0.0, 1.0):
        scene = AppearanceScene(mesh, White(), EVEN_LIGHT, rasteriser, background=background)
        image = scene(views)
        points = rasterize_gbuffer(mesh, views, rasteriser)
        material, normal = scene.material_and_normal(points)
        linear = points.scatter(scene._lit(points, views, material, normal), background)
        linear = rasteriser.antialias(linear, points.rast, points.clip, mesh.faces)
        assert torch.allclose(image, linear_to_srgb(linear) * 2 - 1, atol=1e-6)
        assert torch.allclose(image[0, 0, 0], torch.full((3,), background * 2 - 1), atol=1e-6)
    coverage = rasteriser.antialias(points.mask(), points.rast, points.clip, mesh.faces)
    dark = AppearanceScene(mesh, White(), EVEN_LIGHT, rasteriser)(views)
    outside = (points.mask() == 0) & (coverage > 0.2)
    assert outside.sum() > 10
    # The radiance of the ball is about 1, like that of the light, so an outline pixel is sRGB(coverage).
    shown = (dark[..., :1][outside] + 1) / 2
    assert torch.allclose(shown, linear_to_srgb(coverage[outside]), atol=0.05)
