"""Test DMTet: fit to a start shape, closed surface, vertex offsets, gradients, and empty surface."""

import pytest
import torch
from closed_surface import is_closed

from geometry.dmtet import DMTet, GeometryConfig
from geometry.marching_tets import EmptySurfaceError, marching_tetrahedra
from geometry.orientation import signed_volume
from geometry.sdf_network import SdfNetwork
from geometry.start_shape import StartShapeConfig, build_start_shape, make_fit_pool
from render.encoding.hash_grid import HashGrid
from render.mesh import Mesh, make_mesh

SMALL = {"hash_n_levels": 4, "hash_log2_hashmap_size": 12, "hash_max_resolution": 64}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_dmtet(**changes) -> DMTet:
    return DMTet(
        GeometryConfig(**({"dmtet_grid": 20, "mesh_scale": 2.0} | SMALL | changes)), generator=seeded()
    )


def with_field(dmtet: DMTet, sdf: torch.Tensor, offset: torch.Tensor | None = None) -> DMTet:
    """Replace the output of the network of `dmtet` by the given field, and return `dmtet`."""
    offset = torch.zeros_like(dmtet.v_pos) if offset is None else offset
    dmtet.network.forward = lambda points, rows, _: (
        (sdf, offset) if rows is None else (sdf[rows], offset[rows])
    )
    dmtet.network.distances = lambda points: sdf
    return dmtet


@pytest.fixture(scope="module")
def fitted() -> tuple[DMTet, list[float]]:
    shape = build_start_shape(StartShapeConfig(sdf_init_shape_scale=(0.5, 0.7, 0.6), translation_y=-0.1))
    dmtet = small_dmtet()
    pool = make_fit_pool(shape, dmtet.v_pos, seeded(), surface=4000)
    optimizer = torch.optim.AdamW(
        dmtet.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-15, weight_decay=0.01
    )
    losses = []
    for step in range(200):
        loss = dmtet.fit_loss(*pool.draw(seeded(step), surface=1000, box=600))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return dmtet, losses


def test_fit_converges_to_the_start_shape(fitted):
    dmtet, losses = fitted
    assert losses[-1] < 1e-3 * losses[0]
    sdf, _ = dmtet.field()
    shape = build_start_shape(StartShapeConfig(sdf_init_shape_scale=(0.5, 0.7, 0.6), translation_y=-0.1))
    assert (sdf - shape.signed_distance(dmtet.v_pos)).abs().mean() < 0.02


def test_fitted_mesh_is_the_closed_outward_ellipsoid(fitted):
    mesh = fitted[0].mesh()
    assert is_closed(mesh.faces)
    # The volume of the ellipsoid is 4/3 π a b c.
    assert signed_volume(mesh.v_pos.detach(), mesh.faces) == pytest.approx(
        4.18879 * 0.5 * 0.7 * 0.6, rel=0.05
    )
    assert torch.allclose(mesh.v_nrm.norm(dim=-1), torch.ones(len(mesh.v_nrm)), atol=1e-5)
    outward = ((mesh.v_pos - torch.tensor([0, -0.1, 0])) * mesh.v_nrm).sum(-1) > 0
    assert outward.float().mean() > 0.99


def test_gradient_reaches_every_parameter(fitted):
    dmtet = fitted[0]
    dmtet.zero_grad()
    mesh = dmtet.mesh()
    (mesh.v_pos.square().sum() + mesh.v_nrm[:, 0].sum()).backward()
    for name, parameter in dmtet.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("band", [None, 0.05])
def test_surface_and_gradient_equal_a_full_evaluation(band):
    """DMTet computes gradients only near the surface. The reference evaluates the field at all vertices."""
    surface = small_dmtet()
    wanted = surface.v_pos.norm(dim=-1) - 1.1
    if band is not None:
        surface.limit_to_band(wanted, band)
    with torch.no_grad():
        surface.network.encoding.table.normal_(generator=seeded())

    def whole() -> Mesh:
        sdf, v_pos = surface.field()
        if band is not None:
            sdf = wanted + band / 2 * ((sdf - wanted) / (band / 2)).tanh()
        sdf = torch.where(surface.on_wall & (sdf < 0), torch.tensor(surface.wall_distance), sdf)
        return make_mesh(*marching_tetrahedra(v_pos, sdf, surface.tets, surface.edges, surface.tet_edges))

    results = []
    for build in (surface.mesh, whole):
        surface.zero_grad()
        mesh = build()
        (mesh.v_pos.square().sum() + mesh.v_nrm[:, 0].sum()).backward()
        results.append((mesh, [parameter.grad for parameter in surface.parameters()]))
    (mesh, grads), (expected, expected_grads) = results
    assert torch.equal(mesh.faces, expected.faces) and len(mesh.faces) > 500
    # The surface crosses the boundary of the grid and is closed there.
    assert ((surface.field()[0] < 0) & surface.on_wall).sum() > 50
    assert torch.allclose(mesh.v_pos, expected.v_pos, atol=1e-6)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert (grad - expected_grad).abs().max() < 1e-4 * expected_grad.abs().max()


def test_vertices_move_by_tanh_over_resolution():
    dmtet = small_dmtet()
    offset = torch.full_like(dmtet.v_pos, 100.0)
    offset[:, 1] = 0.3
    _, moved = with_field(dmtet, dmtet.v_pos[:, 0], offset).field()
    step = moved - dmtet.v_pos
    assert torch.allclose(step[:, 0], torch.tensor(1 / 20), atol=1e-6)
    assert torch.allclose(step[:, 1], torch.tensor(0.3).tanh() / 20, atol=1e-6)


@pytest.mark.parametrize("half", [0.8, 3.0])
def test_surface_is_closed_at_the_boundary(half):
    dmtet = small_dmtet()
    mesh = with_field(dmtet, dmtet.v_pos[:, 1].abs() - half).mesh()
    assert is_closed(mesh.faces)
    volume = signed_volume(mesh.v_pos, mesh.faces)
    assert volume == pytest.approx(4 * min(2 * half, 2), rel=0.1) and volume < 8


def test_empty_surface_raises():
    dmtet = small_dmtet()
    with pytest.raises(EmptySurfaceError, match="guidance_weight"):
        with_field(dmtet, torch.ones(len(dmtet.v_pos))).mesh()


def test_equal_seeds_give_equal_weights_and_the_grid_is_not_saved():
    first, second = small_dmtet().state_dict(), small_dmtet().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert set(first) == {"network.encoding.table", *(f"network.mlp.{layer}.weight" for layer in (0, 2, 4))}


def test_state_survives_a_round_trip(fitted):
    copy = small_dmtet()
    copy.field()  # Precompute the encoding, which must be updated when weights are loaded.
    copy.load_state_dict(fitted[0].state_dict())
    assert torch.equal(copy.mesh().v_pos, fitted[0].mesh().v_pos)


def test_network_on_precomputed_points_equals_plain_points():
    encoding = HashGrid(
        -torch.ones(3), torch.ones(3), n_levels=3, log2_hashmap_size=8, max_resolution=40, generator=seeded()
    )
    network = SdfNetwork(encoding, generator=seeded())
    with torch.no_grad():
        encoding.table.normal_(generator=seeded())
    points = torch.rand(100, 3, generator=seeded()) * 2 - 1
    for plain, precomputed in zip(network(points), network(encoding.precompute(points)), strict=True):
        assert torch.allclose(plain, precomputed, atol=1e-5)
    assert network(points)[0].shape == (100,) and network(points)[1].shape == (100, 3)
    weights = [layer.weight for layer in network.mlp if isinstance(layer, torch.nn.Linear)]
    assert [tuple(weight.shape) for weight in weights] == [(32, 6), (32, 32), (4, 32)]
    # The bound of Kaiming-uniform weights for ReLU is sqrt(6 / fan_in).
    assert weights[1].detach().abs().max().item() == pytest.approx((6 / 32) ** 0.5, rel=0.02)


def test_config_ranges():
    assert GeometryConfig() == GeometryConfig(64, 2.1, None, 16, 19, 4096)
    for bad in ({"dmtet_grid": 2}, {"mesh_scale": 0}, {"hash_n_levels": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            GeometryConfig(**bad)


@pytest.mark.gpu
def test_cuda_mesh_equals_cpu(fitted):
    expected = fitted[0].mesh()
    cuda = small_dmtet()
    cuda.field()  # Precompute the encoding, which must be moved to CUDA with the model.
    cuda = cuda.cuda()
    cuda.load_state_dict(fitted[0].state_dict())
    mesh = cuda.mesh()
    assert torch.equal(mesh.faces.cpu(), expected.faces)
    assert torch.allclose(mesh.v_pos.cpu(), expected.v_pos, atol=1e-4)


@pytest.mark.parametrize("band", [0.02, 0.1])
def test_surface_stays_within_the_band(band):
    surface = small_dmtet()
    distances = surface.v_pos.norm(dim=-1) - 0.6
    surface.limit_to_band(distances, band)
    with torch.no_grad():
        for parameter in surface.network.parameters():
            parameter.mul_(30)
    mesh = surface.mesh()
    away = (mesh.v_pos.norm(dim=-1) - 0.6).abs()
    # The tolerance 0.02 is needed because the distance is not linear along a grid edge. This adds an error of
    # about (a fifth of a cell)² / diameter.
    assert 0.3 * band < away.max() < band + 0.02
    mesh.v_pos.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in surface.network.parameters())


def test_band_does_not_change_an_exact_distance():
    surface = small_dmtet()
    with_field(surface, surface.v_pos.norm(dim=-1) - 0.6)
    free = surface.mesh().v_pos
    surface.limit_to_band(surface.field()[0], 0.05)
    assert torch.allclose(surface.mesh().v_pos, free, atol=1e-5)
