"""Compare the compiled kernels with the torch reference: ids, values, pixel pairs and gradients."""

import pytest
import torch

from render.camera import orbit, transform_points
from render.raster import silhouette
from render.raster.reference import ReferenceRasteriser

numba_cpu = pytest.importorskip("render.raster.numba.backend", exc_type=ImportError)


@pytest.fixture(scope="module", params=["bumpy sphere", "soup"])
def scene(request, bumpy_sphere):
    """Return clip [B,V,4], faces and resolution of a closed mesh or of triangles around the camera."""
    if request.param == "bumpy sphere":
        vertices, faces = bumpy_sphere(4)
        return transform_points(orbit(3, (48, 64)).world_to_clip, vertices), faces, (48, 64)
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 90, 4, generator=generator)
    return clip, torch.randint(0, 90, (80, 3), generator=generator), (33, 20)


def test_same_values_and_gradients(numba_rasteriser, scene, whole_step):
    expected, got = whole_step(ReferenceRasteriser(), scene), whole_step(numba_rasteriser, scene)
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


def test_result_is_deterministic(numba_rasteriser, scene, whole_step):
    first, second = whole_step(numba_rasteriser, scene), whole_step(numba_rasteriser, scene)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
