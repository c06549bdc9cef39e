"""The compiled loops against the torch reference: same ids, values, pairs and gradients."""

import pytest
import torch

from render.camera import orbit, transform_points
from render.raster import silhouette
from render.raster.reference import ReferenceRasteriser

numba_cpu = pytest.importorskip("render.raster.numba_cpu", exc_type=ImportError)


@pytest.fixture(scope="module", params=["bumpy sphere", "soup"])
def scene(request, bumpy_sphere):
    """clip [B,V,4], faces, resolution: a closed mesh of small faces, or triangles all around the camera."""
    if request.param == "bumpy sphere":
        vertices, faces = bumpy_sphere(4)
        return transform_points(orbit(3, (48, 64)).world_to_clip, vertices), faces, (48, 64)
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 90, 4, generator=generator)
    return clip, torch.randint(0, 90, (80, 3), generator=generator), (33, 20)


def draw(rasteriser, scene):
    """Everything that one step computes: values and gradients by name."""
    clip, faces, resolution = scene
    generator = torch.Generator().manual_seed(1)
    clip = clip.clone().requires_grad_()
    attributes = torch.randn(clip.shape[1], 4, generator=generator).requires_grad_()
    weight = torch.randn(len(clip), *resolution, 4, generator=generator)
    rast = rasteriser.rasterize(clip, faces, resolution)
    image = rasteriser.interpolate(attributes, rast, faces)
    smooth = rasteriser.antialias(image, rast, clip, faces)
    by_outline = torch.autograd.grad((smooth * weight).sum(), clip, retain_graph=True)[0]
    by_all = torch.autograd.grad((image * weight).sum(), (attributes, clip))
    found = {"rast": rast, "image": image, "smooth": smooth, "outline": by_outline}
    return {**found, "attributes": by_all[0], "positions": by_all[1]}


def test_same_values_and_gradients(numba_rasteriser, scene):
    expected, got = draw(ReferenceRasteriser(), scene), draw(numba_rasteriser, scene)
    assert torch.equal(expected["rast"][..., 3], got["rast"][..., 3])
    for name, value in expected.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(
            got[name], value, rtol=1e-4, atol=1e-5 * value.abs().max().item(), msg=name
        )


def test_same_pairs_row_for_row(numba_rasteriser, scene):
    clip, faces, resolution = scene
    rast = numba_rasteriser.rasterize(clip, faces, resolution)
    edges = silhouette.build_edges(faces)
    expected = silhouette.find_pairs(rast, clip, edges)
    got = numba_rasteriser._find_pairs(rast, clip, edges)
    assert len(expected.inner) > 20
    for name in ("inner", "outer", "edge", "view", "axis"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name


def test_same_edge_table(scene):
    expected, got = silhouette.build_edges(scene[1]), numba_cpu.build_edges(scene[1])
    for name in ("vertices", "start", "opposite"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name


def test_repeats_bit_for_bit(numba_rasteriser, scene):
    first, second = draw(numba_rasteriser, scene), draw(numba_rasteriser, scene)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
