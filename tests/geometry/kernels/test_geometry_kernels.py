"""Compare the Triton kernels of marching tetrahedra and of the SDF network with torch."""

import warnings

import pytest
import torch
from triton_compile import compile_for_gpu

from geometry import dmtet
from geometry.dmtet import DMTet, GeometryConfig
from geometry.kernels import edge_crossings_triton, marching_tets_triton, sdf_network_triton
from geometry.marching_tets import (
    _triangles,
    compact_topology,
    compact_topology_torch,
    marching_tetrahedra,
)
from geometry.sdf_network import SdfNetwork
from geometry.tet_grid import edge_table, make_tet_grid
from render.encoding.hash_grid import HashGrid
from render.encoding.reference import REFERENCE
from render.kernels import available


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same_topology(inside: torch.Tensor, tables: tuple[torch.Tensor, ...]) -> None:
    """Assert that the kernels and torch give the same vertices, edge ends and faces in the same order."""
    found = marching_tets_triton.topology(inside, *tables, _triangles(inside.device))
    for ours, expected in zip(found, compact_topology_torch(inside, *tables), strict=True):
        assert ours.dtype == expected.dtype == torch.int64
        assert torch.equal(ours, expected)


@pytest.fixture(scope="module")
def lattice(kernel_device):
    """Return vertices and index tables of a grid that fills several kernel blocks.

    The last blocks of vertices and of edges are partly filled.
    """
    grid = make_tet_grid(20, 2.0)
    tables = tuple(table.to(kernel_device) for table in (grid.tets, grid.edges, grid.tet_edges))
    for count in (len(grid.v_pos), *map(len, tables[:2])):
        assert count > 2 * marching_tets_triton.BLOCK
    assert len(grid.v_pos) % marching_tets_triton.BLOCK and len(grid.edges) % marching_tets_triton.BLOCK
    return grid.v_pos.to(kernel_device), tables


@pytest.mark.parametrize(
    ("width", "share"), [(2, 0.001), (2, 0.4), (2, 0.999), (marching_tets_triton.WIDTH, 0.4)]
)
def test_topology_of_random_signs(width, share, lattice, kernel_device, monkeypatch):
    """With `width` = 2, the prefix sum over the blocks needs several iterations."""
    monkeypatch.setattr(marching_tets_triton, "WIDTH", width)
    inside = (torch.rand(len(lattice[0]), generator=seeded()) < share).to(kernel_device)
    assert 0 < inside.sum() < len(inside)
    assert_same_topology(inside, lattice[1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_topology_of_a_ball(dtype, lattice):
    """The ball is so small that most blocks of the grid contain no crossed edge."""
    v_pos, tables = lattice
    assert_same_topology(v_pos.norm(dim=-1) < 0.3, tuple(table.to(dtype) for table in tables))


@pytest.mark.parametrize("vertex", [0, 511, 512, -1])
@pytest.mark.parametrize("invert", [False, True])
def test_topology_around_one_vertex(vertex, invert, lattice):
    inside = torch.zeros_like(lattice[0][:, 0], dtype=torch.bool)
    inside[vertex] = True
    assert_same_topology(inside ^ invert, lattice[1])


@pytest.mark.parametrize("everything", [False, True])
def test_topology_is_empty_for_equal_signs(everything, lattice):
    v_pos, tables = lattice
    inside = torch.full((len(v_pos),), everything, device=v_pos.device)
    assert_same_topology(inside, tables)
    found = marching_tets_triton.topology(inside, *tables, _triangles(v_pos.device))
    assert [tuple(part.shape) for part in found] == [(0,), (0, 2), (0, 3)]


def test_topology_of_each_sign_pattern(kernel_device):
    """The meshes are a single tet, and 512 copies of it, which fill a block completely."""
    for count in (1, marching_tets_triton.BLOCK):
        tets = torch.arange(4 * count, dtype=torch.int32).reshape(count, 4)
        edges, tet_edges = edge_table(tets)
        tables = tuple(table.to(kernel_device) for table in (tets, edges, tet_edges))
        for pattern in range(16) if count == 1 else (0b0011, 0b1011):
            bits = torch.tensor([bool(pattern >> v & 1) for v in range(4)], device=kernel_device)
            assert_same_topology(bits.repeat(count), tables)


def padded(inside, tables, rows):
    """Return the padded lists (ends, faces, vertices), the exact lists, and the lengths from the kernels."""
    triangles = _triangles(inside.device)
    vertices, ends, faces, totals = marching_tets_triton.padded_topology(inside, *tables, triangles, rows)
    exact_vertices, exact_ends, exact_faces = compact_topology_torch(inside, *tables)
    return (ends, faces, vertices), (exact_ends, exact_faces, exact_vertices), totals.tolist()


@pytest.mark.parametrize("extra", [(700, 1500, 40), (0, 0, 0), (1, 0, 600)])
def test_padded_topology_with_enough_space(extra, lattice):
    v_pos, tables = lattice
    inside = v_pos.norm(dim=-1) < 0.3
    lengths = [len(part) for part in padded(inside, tables, (1, 1, 1))[1]]
    rows = tuple(length + more for length, more in zip(lengths, extra, strict=True))
    (ends, faces, vertices), exact, totals = padded(inside, tables, rows)
    assert totals == lengths and [len(part) for part in (ends, faces, vertices)] == list(rows)
    for ours, expected in zip((ends, faces, vertices), exact, strict=True):
        assert torch.equal(ours[: len(expected)], expected)
    # The additional edges are crossed, the additional faces have no area, and all indices are valid.
    sides = inside[vertices][ends]
    assert (sides[:, 0] != sides[:, 1]).all()
    assert (faces[lengths[1] :] == faces[lengths[1] :, :1]).all() and int(faces.max()) < lengths[0]
    assert len(vertices[lengths[2] :].unique()) == extra[2]


@pytest.mark.parametrize("share", [1, 3, 50])
def test_padded_topology_with_too_little_space(share, lattice):
    """The lists contain the first entries, and indices that refer to missing entries are replaced."""
    v_pos, tables = lattice
    inside = v_pos.norm(dim=-1) < 0.5
    lengths = [len(part) for part in padded(inside, tables, (1, 1, 1))[1]]
    rows = tuple(max(length * share // 100, 1) for length in lengths)
    (ends, faces, vertices), exact, totals = padded(inside, tables, rows)
    assert totals == lengths and all(row < length for row, length in zip(rows, lengths, strict=True))
    assert torch.equal(vertices, exact[2][: rows[2]])
    assert torch.equal(ends, exact[0][: rows[0]].clamp(max=rows[2] - 1))
    assert torch.equal(faces, exact[1][: rows[1]].clamp(max=rows[0] - 1))


def test_padded_topology_of_an_empty_surface(lattice):
    v_pos, tables = lattice
    (ends, faces, vertices), _, totals = padded(torch.zeros_like(v_pos[:, 0]) > 0, tables, (5, 600, 7))
    assert totals == [0, 0, 0] and not ends.any() and not faces.any()
    assert torch.equal(vertices.cpu(), torch.arange(7))


COMPILE_TOPOLOGY = """
import torch
from geometry.kernels import marching_tets_triton
from geometry.marching_tets import _triangles
from geometry.tet_grid import edge_table, make_tet_grid

def compile_on(tets, edges, tet_edges, vertices):
    inside = torch.zeros(vertices, dtype=torch.bool)
    marching_tets_triton.topology(inside, tets, edges, tet_edges, _triangles(inside.device))
    rows = (5, 32, 4)
    marching_tets_triton.padded_topology(inside, tets, edges, tet_edges, _triangles(inside.device), rows)

# Nothing is run here: every number is one.
torch.empty = torch.ones
for resolution in (5, 64):
    grid = make_tet_grid(resolution, 2.0)
    compile_on(grid.tets, grid.edges, grid.tet_edges, len(grid.v_pos))
tets = torch.tensor([[0, 1, 2, 3]])
compile_on(tets, *edge_table(tets), 4)
"""


def test_topology_compiles_for_a_gpu():
    """The inputs are a small and a large grid with int32 indices, and a single tet with int64 indices."""
    found = compile_for_gpu(COMPILE_TOPOLOGY)
    assert found.keys() == {"_find_crossed", "_find_used", "_sum_blocks", "_write", "_pad"}
    assert found["_find_crossed"] > 1 and found["_write"] > 1


def small_network(device: torch.device, levels: int = 5, hidden: int = 32) -> SdfNetwork:
    grid = HashGrid(-torch.ones(3), torch.ones(3), n_levels=levels, log2_hashmap_size=8, max_resolution=40)
    network = SdfNetwork(grid, hidden, generator=seeded())
    with torch.no_grad():
        network.encoding.table.normal_(generator=seeded(1))
    return network.to(device)


@pytest.mark.parametrize(("levels", "hidden"), [(5, 32), (16, 32), (8, 64)])
def test_distances_equal_torch(levels, hidden, kernel_device):
    """The errors are those of float32 rounding. With one TF32 pass instead of three, they would be 5e-4."""
    network = small_network(kernel_device, levels, hidden)
    encoded = torch.randn(sdf_network_triton.BLOCK + 21, 2 * levels, generator=seeded(2)).to(kernel_device)
    weights = [layer.weight for layer in network.mlp[::2]]
    assert sdf_network_triton.can_run(*weights)
    found = sdf_network_triton.distances(encoded, *weights)
    expected = network.mlp.double()(encoded.double())[:, 0]
    assert not found.requires_grad and found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert sdf_network_triton.distances(encoded[:0], *weights).shape == (0,)


@pytest.mark.parametrize(("levels", "hidden"), [(5, 32), (16, 32), (8, 64)])
def test_mlp_and_its_gradients_equal_torch(levels, hidden, kernel_device, monkeypatch):
    """The backward pass has three programs for five blocks, and the last block is partly filled."""
    monkeypatch.setattr(sdf_network_triton, "BACKWARD_PROGRAMS", 3)
    network = small_network(kernel_device, levels, hidden)
    count = sdf_network_triton.BLOCK + 21
    assert count > 4 * sdf_network_triton.BACKWARD_BLOCK
    inputs = [torch.randn(count, 2 * levels, generator=seeded(2)).to(kernel_device), *network._weights()]
    grad_output = torch.randn(count, 4, generator=seeded(3)).to(kernel_device)
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = sdf_network_triton.mlp(*inputs)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = exact[0]
    for number, weight in enumerate(exact[1:]):
        expected = (expected.relu() if number else expected) @ weight.T
    found = [out, *torch.autograd.grad(out, inputs, grad_output)]
    expected = [expected, *torch.autograd.grad(expected, exact, grad_output.double())]
    for ours, value in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32 and ours.shape == value.shape
        assert (ours - value).abs().max() < 1e-5 * value.abs().max()


def test_mlp_without_rows(kernel_device):
    network = small_network(kernel_device)
    encoded = torch.zeros(0, 10, device=kernel_device, requires_grad=True)
    out = sdf_network_triton.mlp(encoded, *network._weights())
    gradients = torch.autograd.grad(out.sum(), (encoded, *network._weights()))
    assert out.shape == (0, 4) and not any(gradient.any() for gradient in gradients)


COMPILE_MLP = """
import torch
from geometry.kernels import sdf_network_triton
encoded = torch.zeros(40, 32, requires_grad=True)
weights = torch.zeros(32, 32), torch.zeros(32, 32), torch.zeros(4, 32)
sdf_network_triton.distances(encoded, *weights)
sdf_network_triton.mlp(encoded, *weights).sum().backward()
"""


def test_mlp_compiles_for_a_gpu():
    assert compile_for_gpu(COMPILE_MLP) == {"_distances": 1, "_forward": 1, "_backward": 1}


def test_copied_encoding_has_the_same_values_and_gradients(kernel_device):
    """Rows that are copied from the encoding of all points equal rows that are encoded again."""
    network = small_network(kernel_device)
    points = (torch.rand(50, 3, generator=seeded()) * 2 - 1).to(kernel_device)
    precomputed = network.encoding.precompute(points)
    precomputed.matrices = None
    rows = torch.tensor([3, 4, 4, 49, 0], device=kernel_device)
    everywhere = precomputed().detach()
    grad_output = torch.randn(5, 10, generator=seeded(3)).to(kernel_device)
    found = []
    for features in (None, everywhere):
        encoded = precomputed(rows, features)
        grad = torch.autograd.grad(encoded, network.encoding.table, grad_output)[0]
        found.append((encoded.detach(), grad))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1].any()
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)
    # The values are copied and not computed again, so a change of `everywhere` changes the result.
    assert torch.equal(precomputed(rows, everywhere + 1), everywhere[rows] + 1)


def test_unsupported_sizes():
    network = small_network(torch.device("cpu"), hidden=24)
    assert not sdf_network_triton.can_run(*network._weights())
    assert not sdf_network_triton.can_run(*small_network(torch.device("cpu")).double()._weights())


def test_distances_are_the_first_output_of_the_network():
    network = small_network(torch.device("cpu"))
    points = torch.rand(50, 3, generator=seeded()) * 2 - 1
    found = network.distances(network.encoding.precompute(points)())
    assert not found.requires_grad and torch.allclose(found, network(points)[0], atol=1e-5)


def test_crossings_and_their_gradients(kernel_device, monkeypatch):
    """Kernels and torch give equal results for a surface that crosses the boundary of the grid."""
    surface = DMTet(GeometryConfig(dmtet_grid=16, mesh_scale=2.0, hash_n_levels=3, hash_log2_hashmap_size=8))
    surface = surface.to(kernel_device)
    # The kernels must also accept a column-major buffer.
    surface.v_pos = surface.v_pos.T.contiguous().T
    everywhere = (surface.v_pos - torch.tensor([0.3, 0.1, 0.6], device=kernel_device)).norm(dim=-1) - 0.7
    noise = torch.randn(len(everywhere), generator=seeded()).to(kernel_device)
    everywhere = surface._closed(everywhere + 0.02 * noise)
    tables = surface.tets, surface.edges, surface.tet_edges
    vertices, ends, _ = compact_topology_torch(everywhere < 0, *tables)
    raw = torch.randn(len(vertices), 4, generator=seeded(1)).to(kernel_device)
    held = surface.on_wall[vertices] & (raw[:, 0] < 0)
    assert held.any() and not held.all() and len(ends) > edge_crossings_triton.BLOCK
    grad_output = torch.randn(len(ends), 3, generator=seeded(2)).to(kernel_device)
    # The kernel skips edges without gradient.
    grad_output[3:40] = 0
    grad_output[:3] = -torch.eye(3)
    monkeypatch.setattr(SdfNetwork, "raw_output", lambda *_: raw_output)
    found = []
    for by_kernels in (False, True):
        monkeypatch.setattr(dmtet, "triton_available", lambda *_, run=by_kernels: run)
        raw_output = raw.clone().requires_grad_()
        points = surface.crossings(everywhere, vertices, ends)
        found.append((points.detach(), torch.autograd.grad(points, raw_output, grad_output)[0]))
    for ours, expected in zip(*reversed(found), strict=True):
        assert (ours - expected).abs().max() < 2e-5 * expected.abs().max()


COMPILE_CROSSINGS = """
import torch
from geometry.kernels.edge_crossings_triton import crossings
raw = torch.zeros(3, 4, requires_grad=True)
vertices, ends = torch.arange(3), torch.tensor([[0, 1], [1, 2]])
on_wall = torch.zeros(5, dtype=torch.bool)
points = crossings(raw, torch.ones(5), torch.ones(5, 3), on_wall, vertices, ends, 0.1)
points.sum().backward()
"""


def test_crossings_compile_for_a_gpu():
    assert compile_for_gpu(COMPILE_CROSSINGS).keys() == {"_cross", "_cross_backward"}


def near_relu_zero(network: SdfNetwork, encoded: torch.Tensor) -> torch.Tensor:
    """Return a mask [N] of the rows in which the input of a ReLU is close to 0.

    In such a row, rounding errors determine the sign of the input and so the derivative of the ReLU, which is
    0 or 1.
    """
    first, second, _ = network._weights()
    near = torch.zeros(len(encoded), dtype=torch.bool, device=encoded.device)
    hidden = encoded
    for weight in (first, second):
        hidden = hidden @ weight.T
        near |= (hidden.abs() < 1e-5 * hidden.abs().mean()).any(-1)
        hidden = hidden.relu()
    return near


@torch.no_grad()
def crossings_with_defined_gradient(surface: DMTet) -> torch.Tensor:
    """Return a mask [N,1] of the surface vertices whose edges have no end in near_relu_zero."""
    encoded = surface.network.encoding.precompute(surface.v_pos)()
    inside = surface._closed(surface.network.distances(encoded)) < 0
    vertices, ends, _ = compact_topology(inside, surface.tets, surface.edges, surface.tet_edges)
    return ~near_relu_zero(surface.network, encoded[vertices])[ends].any(-1, keepdim=True)


@pytest.mark.gpu
@pytest.mark.parametrize("grid", [64, 256])
def test_mesh_on_cuda_equals_torch(grid, monkeypatch):
    """The mesh of all kernels together equals that of torch, which computes gradients at all vertices.

    The loss excludes surface vertices whose gradient depends on the sign of a rounding error. Edges with
    nearly equal distances at both ends dominate the gradient, so one such vertex can change the gradient by
    1e-4.
    """
    torch.manual_seed(0)
    surface = DMTet(GeometryConfig(dmtet_grid=grid, mesh_scale=2.0))
    with torch.no_grad():
        surface.network.encoding.table.normal_(std=0.02)
    surface = surface.cuda()
    weights = torch.randn(3, 1, device="cuda")
    signed = surface.network.distances(surface.network.encoding.precompute(surface.v_pos)())
    mesh, defined = surface.mesh(), crossings_with_defined_gradient(surface)
    assert 0.99 < defined.float().mean() < 1
    (mesh.v_pos @ weights * defined).square().sum().backward()
    grads = [parameter.grad.clone() for parameter in surface.parameters()]

    monkeypatch.setattr(available, "triton_works", lambda device: False)
    monkeypatch.setattr(surface.network.encoding, "_encoder", REFERENCE)
    surface.zero_grad()
    sdf, v_pos = surface.field()
    assert (signed - sdf).abs().max() < 2e-5 * sdf.abs().max()
    # The reference uses the values that the kernels computed. If torch computed them again, a rounding error
    # could change the sign of a distance or move a crossing far.
    sdf = signed + (sdf - sdf.detach())
    sdf = sdf.masked_fill(surface.on_wall & (sdf < 0), surface.wall_distance)
    tables = surface.tets, surface.edges, surface.tet_edges
    verts, faces = marching_tetrahedra(v_pos, sdf, *tables)
    (verts @ weights * defined).square().sum().backward()
    assert torch.equal(mesh.faces, faces) and len(faces) > 10_000
    assert torch.allclose(mesh.v_pos, verts, atol=1e-5)
    for grad, parameter in zip(grads, surface.parameters(), strict=True):
        assert (grad - parameter.grad).norm() < 1e-4 * parameter.grad.norm()


def noisy_ball(resolution: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return a mask of random vertices inside a ball, and the index tables of the grid."""
    grid = make_tet_grid(resolution, 2.0)
    inside = torch.rand(len(grid.v_pos), generator=seeded()) < 0.3
    return inside & (grid.v_pos.norm(dim=-1) < 0.8), (grid.tets, grid.edges, grid.tet_edges)


@pytest.mark.gpu
@pytest.mark.parametrize("resolution", [64, 256])
def test_topology_on_cuda_equals_cpu(resolution):
    inside, tables = noisy_ball(resolution)
    found = compact_topology(inside.cuda(), *(table.cuda() for table in tables))
    for ours, expected in zip(found, compact_topology_torch(inside, *tables), strict=True):
        assert torch.equal(ours.cpu(), expected) and len(expected) > 1000


def synchronisations(act) -> int:
    """Return the number of host synchronisations that torch reports during the call."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            act()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


@pytest.mark.gpu
def test_topology_synchronises_once():
    inside, tables = noisy_ball(64)
    inside, tables = inside.cuda(), tuple(table.cuda() for table in tables)
    assert available.triton_works(inside.device)
    for topology, expected in ((compact_topology, [1]), (compact_topology_torch, range(4, 10))):
        topology(inside, *tables)
        assert synchronisations(lambda topology=topology: topology(inside, *tables)) in expected
