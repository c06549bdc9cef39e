"""The Triton kernels of marching and of the network against torch."""

import pytest
import torch

from geometry import marching_tets_triton, sdf_network_triton
from geometry.dmtet import DMTet, GeometryConfig
from geometry.marching_tets import corners_inside_torch, marching_tetrahedra, surface_topology
from geometry.sdf_network import SdfNetwork
from geometry.tet_grid import make_tet_grid
from render import hash_grid
from render.hash_grid import HashGrid


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("simplices", ["edges", "tets"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_corners_inside(simplices, dtype, kernel_device):
    grid = make_tet_grid(8, 1.0)
    inside = (torch.rand(len(grid.v_pos), generator=seeded()) < 0.4).to(kernel_device)
    corners = getattr(grid, simplices).to(kernel_device, dtype)
    assert len(corners) % marching_tets_triton.BLOCK
    found = marching_tets_triton.corners_inside(inside, corners)
    assert found.unique().tolist() == list(range(corners.shape[1] + 1))
    assert torch.equal(found, corners_inside_torch(inside, corners))
    assert marching_tets_triton.corners_inside(inside, corners[:0]).shape == (0,)


def small_network(device: torch.device, levels: int = 5, hidden: int = 32) -> SdfNetwork:
    grid = HashGrid(-torch.ones(3), torch.ones(3), levels=levels, log2_entries=8, finest=40)
    network = SdfNetwork(grid, hidden, generator=seeded())
    with torch.no_grad():
        network.encoding.table.normal_(generator=seeded(1))
    return network.to(device)


@pytest.mark.parametrize(("levels", "hidden"), [(5, 32), (16, 32), (8, 64)])
def test_distances_without_a_gradient(levels, hidden, kernel_device):
    """To about the rounding of float32: one TF32 pass instead of three would be off by 5e-4."""
    network = small_network(kernel_device, levels, hidden)
    encoded = torch.randn(sdf_network_triton.BLOCK + 21, 2 * levels, generator=seeded(2)).to(kernel_device)
    weights = [layer.weight for layer in network.mlp[::2]]
    assert sdf_network_triton.can_run(weights[0])
    found = sdf_network_triton.distances(encoded, *weights)
    expected = network.mlp.double()(encoded.double())[:, 0]
    assert not found.requires_grad and found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert sdf_network_triton.distances(encoded[:0], *weights).shape == (0,)


def test_sizes_that_the_kernel_cannot_do():
    network = small_network(torch.device("cpu"), hidden=24)
    assert not sdf_network_triton.can_run(network.mlp[0].weight)
    assert not sdf_network_triton.can_run(small_network(torch.device("cpu")).mlp[0].weight.double())


def test_distances_of_the_network_are_its_first_output():
    network = small_network(torch.device("cpu"))
    points = torch.rand(50, 3, generator=seeded()) * 2 - 1
    found = network.distances(network.encoding.pin(points))
    assert not found.requires_grad and torch.allclose(found, network(points)[0], atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("grid", [64, 256])
def test_a_mesh_on_cuda_is_that_of_the_whole_field(grid, monkeypatch):
    """All kernels together against plain torch in float32, differentiated everywhere."""
    torch.manual_seed(0)
    surface = DMTet(GeometryConfig(dmtet_grid=grid, mesh_scale=2.0))
    with torch.no_grad():
        surface.network.encoding.table.normal_(std=0.02)
    surface = surface.cuda()
    weights = torch.randn(3, 1, device="cuda")
    signed = surface.network.distances(surface.network.encoding.pin(surface.v_pos))
    mesh = surface.mesh()
    (mesh.v_pos @ weights).square().sum().backward()
    grads = [parameter.grad.clone() for parameter in surface.parameters()]

    monkeypatch.setattr(hash_grid, "fused_encoder", lambda device: None)
    surface.zero_grad()
    sdf, v_pos = surface.field()
    assert (signed - sdf).abs().max() < 2e-5 * sdf.abs().max()
    # The same signs, and no difference where a tiny one at both ends of an edge would move its crossing far.
    sdf = signed + (sdf - sdf.detach())
    sdf = sdf.masked_fill(surface.on_wall & (sdf < 0), surface.wall_distance)
    tables = surface.tets, surface.edges, surface.tet_edges
    verts, faces = marching_tetrahedra(v_pos, sdf, *tables)
    (verts @ weights).square().sum().backward()
    assert torch.equal(mesh.faces, faces) and len(faces) > 10_000
    assert torch.allclose(mesh.v_pos, verts, atol=1e-5)
    for grad, parameter in zip(grads, surface.parameters(), strict=True):
        assert (grad - parameter.grad).norm() < 1e-4 * parameter.grad.norm()


@pytest.mark.gpu
def test_the_topology_on_cuda_is_that_on_the_cpu():
    grid = make_tet_grid(128, 2.0)
    inside = torch.rand(len(grid.v_pos), generator=seeded()) < 0.3
    inside &= grid.v_pos.norm(dim=-1) < 0.8
    tables = grid.tets, grid.edges, grid.tet_edges
    expected = surface_topology(inside, *tables)
    found = surface_topology(inside.cuda(), *(table.cuda() for table in tables))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
