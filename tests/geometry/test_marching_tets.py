"""Test marching tetrahedra: the 16 sign patterns, closedness, orientation, convergence and gradients."""

import math
import re
from collections import Counter

import pytest
import torch

from geometry.marching_tets import marching_tetrahedra
from geometry.tet_grid import TetGrid, edge_table, make_tet_grid

CORNERS = torch.tensor(
    [[0.1, 0.0, 0.2], [1.0, 0.1, 0.0], [0.0, 1.1, 0.1], [0.2, 0.1, 1.0]], dtype=torch.float64
)
ONE_TET = torch.tensor([[0, 1, 2, 3]])
VALUES = torch.tensor([0.3, 0.5, 0.2, 0.6], dtype=torch.float64)


def march(grid: TetGrid, sdf: torch.Tensor, v_pos: torch.Tensor | None = None):
    v_pos = grid.v_pos if v_pos is None else v_pos
    return marching_tetrahedra(v_pos, sdf, grid.tets, grid.edges, grid.tet_edges)


def directed_edges(faces: torch.Tensor) -> Counter:
    return Counter((a, b) for face in faces.tolist() for a, b in zip(face, face[1:] + face[:1], strict=True))


def assert_closed_manifold(faces: torch.Tensor):
    edges = directed_edges(faces)
    assert max(edges.values()) == 1
    assert all((b, a) in edges for a, b in edges)


def areas_and_volume(verts: torch.Tensor, faces: torch.Tensor) -> tuple[float, float]:
    a, b, c = (verts.double()[faces[:, corner]] for corner in range(3))
    cross = torch.linalg.cross(b - a, c - a, dim=-1)
    return cross.norm(dim=-1).sum().item() / 2, (a * cross).sum().item() / 6


@pytest.mark.parametrize("pattern", range(16))
def test_sign_pattern(pattern):
    inside = torch.tensor([bool(pattern >> v & 1) for v in range(4)])
    sdf = torch.where(inside, -VALUES, VALUES)
    edges, tet_edges = edge_table(ONE_TET)
    verts, faces = marching_tetrahedra(CORNERS, sdf, ONE_TET, edges, tet_edges)
    assert len(faces) == [0, 1, 2, 1, 0][int(inside.sum())]
    assert len(verts) == [0, 3, 4, 3, 0][int(inside.sum())]
    if not len(faces):
        return
    assert sorted(set(faces.reshape(-1).tolist())) == list(range(len(verts)))
    # The linear function through the four corner values is zero at the vertices of the surface and increases
    # along the normal of every face.
    plane = torch.linalg.solve(torch.cat([CORNERS, torch.ones(4, 1, dtype=torch.float64)], 1), sdf)
    assert (verts @ plane[:3] + plane[3]).abs().max() < 1e-12
    a, b, c = (verts[faces[:, corner]] for corner in range(3))
    normals = torch.linalg.cross(b - a, c - a, dim=-1)
    assert (torch.nn.functional.cosine_similarity(normals, plane[None, :3]) > 1 - 1e-9).all()
    if len(faces) == 2:
        # The two triangles contain their common edge in opposite directions. Together they cover the quad.
        edges_of = directed_edges(faces)
        assert sum((q, p) in edges_of for p, q in edges_of) == 2
        outline = [v for edge, v in edges_of.items() if edge[::-1] not in edges_of]
        assert len(outline) == 4


@pytest.mark.parametrize("seed", range(3))
def test_random_signs_give_a_closed_surface(seed):
    grid = make_tet_grid(12, 2.0)
    sdf = torch.randn(len(grid.v_pos), generator=torch.Generator().manual_seed(seed))
    on_wall = (grid.v_pos.abs() > 1 - 1e-6).any(-1)
    sdf = torch.where(on_wall, sdf.abs() + 0.1, sdf)
    verts, faces = march(grid, sdf)
    assert len(faces) > 1000
    assert_closed_manifold(faces)
    assert sorted(set(faces.reshape(-1).tolist())) == list(range(len(verts)))


def test_sphere_is_closed_and_outward_with_euler_characteristic_two():
    grid = make_tet_grid(32, 2.0)
    verts, faces = march(grid, grid.v_pos.norm(dim=-1) - 0.7)
    assert_closed_manifold(faces)
    assert len(verts) - len(directed_edges(faces)) // 2 + len(faces) == 2
    a, b, c = (verts[faces[:, corner]] for corner in range(3))
    outward = (torch.linalg.cross(b - a, c - a, dim=-1) * (a + b + c)).sum(-1)
    assert (outward > 0).float().mean() > 0.999 and areas_and_volume(verts, faces)[1] > 0


def test_torus_has_euler_characteristic_zero():
    grid = make_tet_grid(40, 2.0)
    x, y, z = grid.v_pos.unbind(-1)
    verts, faces = march(grid, ((x * x + y * y).sqrt() - 0.6).square() + z * z - 0.25**2)
    assert_closed_manifold(faces)
    assert len(verts) - len(directed_edges(faces)) // 2 + len(faces) == 0


def test_error_on_a_sphere_is_quadratic_in_the_cell_size():
    radius, errors = 0.7, []
    for resolution in (20, 40, 80):
        grid = make_tet_grid(resolution, 2.0)
        area, volume = areas_and_volume(*march(grid, grid.v_pos.norm(dim=-1) - radius))
        errors.append((4 * math.pi * radius**2 - area, 4 / 3 * math.pi * radius**3 - volume))
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert all(3.5 < c / f < 4.5 for c, f in zip(coarse, fine, strict=True))


def test_gradients_by_finite_differences():
    grid = make_tet_grid(5, 2.0)
    v_pos = grid.v_pos.double().requires_grad_()
    sdf = (grid.v_pos.double() - torch.tensor([0.05, 0.03, -0.04])).norm(dim=-1) - 0.63
    assert sdf.abs().min() > 1e-3
    sdf.requires_grad_()
    assert torch.autograd.gradcheck(lambda v, s: march(grid, s, v)[0], (v_pos, sdf), eps=1e-5)


def test_zero_counts_as_outside():
    grid = make_tet_grid(8, 2.0)
    sdf = grid.v_pos.abs().amax(-1) - grid.v_pos.abs().amax(-1).unique()[3]
    assert (sdf == 0).sum() > 10
    sdf.requires_grad_()
    verts, faces = march(grid, sdf)
    verts.square().sum().backward()
    assert verts.isfinite().all() and sdf.grad.isfinite().all()
    assert_closed_manifold(faces)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_crossing_gives_an_empty_mesh(sign):
    grid = make_tet_grid(5, 1.0)
    verts, faces = march(grid, torch.full((len(grid.v_pos),), sign))
    assert verts.shape == (0, 3) and faces.shape == (0, 3)


@pytest.mark.gpu
def test_cuda_equals_cpu():
    grid = make_tet_grid(32, 2.0)
    sdf = grid.v_pos.norm(dim=-1) - 0.7
    verts, faces = march(grid, sdf)
    moved = TetGrid(*(t.cuda() for t in (grid.v_pos, grid.tets, grid.edges, grid.tet_edges)), grid.resolution)
    cuda_verts, cuda_faces = march(moved, sdf.cuda())
    assert torch.allclose(cuda_verts.cpu(), verts, atol=1e-6)
    assert torch.equal(cuda_faces.cpu(), faces)


def kaolin_or_skip():
    """Return NVIDIA's kaolin, or skip the test if it is missing or older than 0.17.

    Version 0.1 on PyPI is a placeholder without code.
    """
    kaolin = pytest.importorskip("kaolin", reason="kaolin is not installed; it is optional")
    version = tuple(int(part) for part in re.findall(r"\d+", getattr(kaolin, "__version__", "0.1"))[:2])
    if version < (0, 17):
        pytest.skip(f"kaolin {version} is PyPI's placeholder or older than 0.17")
    return kaolin


def test_surface_equals_kaolin():
    kaolin = kaolin_or_skip()
    grid = make_tet_grid(32, 2.0)
    sdf = grid.v_pos.norm(dim=-1) - 0.6 + 0.1 * torch.sin(7 * grid.v_pos[:, 0])
    verts, faces = march(grid, sdf)
    # In kaolin, positive values are inside the surface, so the sign is changed.
    their_verts, their_faces = kaolin.ops.conversions.marching_tetrahedra(
        grid.v_pos[None], grid.tets.long(), -sdf[None]
    )
    assert len(their_verts[0]) == len(verts) and len(their_faces[0]) == len(faces)
    assert torch.cdist(verts.double(), their_verts[0].double()).min(1).values.max() < 1e-5
    area, volume = areas_and_volume(verts, faces)
    their_area, their_volume = areas_and_volume(their_verts[0], their_faces[0])
    assert their_area == pytest.approx(area, rel=1e-4)
    # The orientation of kaolin's faces can differ, so the absolute value of the volume is compared.
    assert abs(their_volume) == pytest.approx(volume, rel=1e-4)
