"""Test that a mesh of unknown size renders and differentiates like the mesh of known size."""

import pytest
import torch

from geometry import dmtet, pending_mesh
from geometry.dmtet import DMTet, GeometryConfig
from geometry.kernels import marching_tets_triton
from geometry.marching_tets import EmptySurfaceError, _triangles, compact_topology_torch
from geometry.pending_mesh import GRANULE, TopologySpace
from geometry.regularisers import TERMS
from render.camera import orbit
from render.raster.reference import ReferenceRasteriser
from render.scene import GeometryScene
from render.shade.light import EnvironmentLight


@pytest.fixture
def scene(kernel_device, monkeypatch):
    """Return a scene with a small random surface, whose padded topology is computed by the kernels."""

    def padded(inside, *given):
        *tables, rows = given
        return marching_tets_triton.padded_topology(inside, *tables, _triangles(inside.device), rows)

    monkeypatch.setattr(dmtet, "padded_topology", padded)
    monkeypatch.setattr(dmtet, "triton_runs_on", lambda device: True)
    monkeypatch.setattr(pending_mesh, "GRANULE", 8)
    torch.manual_seed(0)
    surface = DMTet(GeometryConfig(dmtet_grid=8, mesh_scale=2.0, hash_n_levels=3, hash_log2_hashmap_size=8))
    with torch.no_grad():
        surface.network.encoding.table.normal_(std=0.1)
    light = EnvironmentLight(torch.ones(6, 4, 4, 3))
    return GeometryScene(surface, ReferenceRasteriser(), light, flip_normal=False).to(kernel_device)


def image_and_gradients(scene, wait):
    """Return the image and the gradients of its sum and of the surface terms."""
    scene.zero_grad()
    image = scene(orbit(2, (24, 24)), wait)
    assert scene.is_complete()
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)).to(image)
    terms = sum(term(scene.mesh) for term in TERMS.values())
    ((image * weights).sum() + terms).backward()
    return image.detach(), [parameter.grad for parameter in scene.parameters() if parameter.grad is not None]


def test_image_and_gradients_equal_those_of_the_known_mesh(scene):
    expected, gradients = image_and_gradients(scene, wait=True)
    vertices, faces = len(scene.mesh.v_pos), len(scene.mesh.faces)
    found, found_gradients = image_and_gradients(scene, wait=False)
    # On a GPU, the normals are summed in varying order.
    assert torch.allclose(found, expected, atol=1e-5) and (expected[..., 3] > 0).sum() > 100
    assert (len(scene.mesh.v_pos), len(scene.mesh.faces), len(scene.mesh.v_nrm)) == (
        vertices,
        faces,
        vertices,
    )
    for ours, exact in zip(found_gradients, gradients, strict=True):
        assert exact.abs().max() > 0 and torch.allclose(ours, exact, rtol=1e-4, atol=1e-6 * exact.abs().max())


@pytest.mark.parametrize("shorter", [(0, 1, 2), (0,), (1,), (2,)])
def test_mesh_that_outgrows_its_space_is_reported_and_fits_in_the_next_call(shorter, scene):
    expected, _ = image_and_gradients(scene, wait=True)
    exact = scene.surface._space.rows
    rows = [row // 30 if number in shorter else row for number, row in enumerate(exact)]
    scene.surface._space.rows = tuple(rows)
    views = orbit(2, (24, 24))
    assert (scene(views, False) - expected).abs().max() > 0.1 and not scene.is_complete()
    assert scene.surface._space.rows == exact
    assert torch.allclose(scene(views, False), expected, atol=1e-5) and scene.is_complete()


def test_first_mesh_has_a_known_size(scene):
    surface = scene.surface
    mesh = surface.pending_mesh()
    assert mesh.lengths is None and mesh.finished() is mesh.mesh
    vertices, ends, faces = compact_topology_torch(
        surface._everywhere()[1] < 0, surface.tets, surface.edges, surface.tet_edges
    )
    lengths = len(ends), len(faces), len(vertices)
    assert surface._space.rows == tuple((int(1.125 * length) // 8 + 1) * 8 for length in lengths)
    assert len(surface.pending_mesh().mesh.faces) == surface._space.rows[1] > len(mesh.mesh.faces)


def test_empty_surface_raises_when_its_size_is_read(scene):
    scene(orbit(1, (8, 8)))
    with torch.no_grad():
        scene.surface.network.mlp[-1].weight.zero_()
    # The field is 0 at all vertices, which counts as outside.
    scene(orbit(1, (8, 8)), False)
    with pytest.raises(EmptySurfaceError, match="guidance_weight"):
        scene.is_complete()


def test_space_grows_before_it_is_full_and_shrinks_if_it_is_almost_empty():
    space = TopologySpace((100_000, 200_000, 50_000))
    space.update((40_000, 80_000, 30_000))
    first = space.rows
    assert first[0] >= 45_000 and first[1] >= 90_000 and first[2] >= 33_750
    assert all(row % GRANULE == 0 for row in first)
    space.update((42_000, 84_000, 31_000))
    assert space.rows == first
    space.update((40_000, int(0.98 * first[1]), 30_000))
    assert space.rows[1] > 1.1 * first[1] and space.rows[0] == first[0]
    space.update((10_000, 20_000, 8_000))
    assert max(space.rows) < 30_000
    space.update((99_999, 10, 49_999))
    assert space.rows == (100_000, GRANULE, 50_000)
