"""Make a bumpy ball, a noise surface and a material field for the tests of export."""

import torch
import trimesh

from geometry.marching_tets import marching_tetrahedra
from geometry.tet_grid import make_tet_grid
from render.mesh import Mesh, make_mesh


def bumpy_ball(subdivisions: int = 3) -> Mesh:
    """Return a closed, non-developable surface of radius about 0.7."""
    ball = trimesh.creation.icosphere(subdivisions=subdivisions)
    direction = torch.tensor(ball.vertices, dtype=torch.float32)
    radius = 0.7 + 0.1 * torch.sin(5 * direction[:, :1]) * torch.cos(4 * direction[:, 1:2])
    return make_mesh(direction * radius, torch.tensor(ball.faces))


def noise_surface(cells: int) -> Mesh:
    """Return the zero level set of white noise on a lattice of cells³ cells.

    The surface has many components and sharp folds.
    """
    grid = make_tet_grid(round(cells / 0.4), 2.0)
    values = torch.randn(len(grid.v_pos), generator=torch.Generator().manual_seed(0))
    return make_mesh(*marching_tetrahedra(grid.v_pos, values, grid.tets, grid.edges, grid.tet_edges))


def smooth_field(points: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return kd, ks and normal, which vary smoothly over the surface within their ranges."""
    x, y, z = points.unbind(-1)
    wave = torch.stack([torch.sin(6 * x), torch.sin(5 * y + 1), torch.sin(7 * z + 2)], -1)
    tilt = torch.stack([0.3 * torch.sin(4 * x), 0.3 * torch.cos(4 * y), torch.ones_like(z)], -1)
    return {
        "kd": 0.5 + 0.45 * wave,
        "ks": 0.5 + 0.3 * wave.flip(-1),
        "normal": torch.nn.functional.normalize(tilt, dim=-1),
    }


def surface_samples(mesh: Mesh, count: int, edge: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points on faces [N,3] and their uv [N,2]. If `edge`, the points lie on edges of faces."""
    generator = torch.Generator().manual_seed(1)
    faces = torch.randint(len(mesh.faces), (count,), generator=generator)
    weights = torch.rand(count, 3, generator=generator) + 1e-3
    if edge:
        weights[torch.arange(count), torch.randint(3, (count,), generator=generator)] = 0
    weights = weights / weights.sum(-1, keepdim=True)
    points = (mesh.v_pos[mesh.faces[faces]] * weights[..., None]).sum(1)
    return points, (mesh.uv[mesh.uv_faces[faces]] * weights[..., None]).sum(1)


def bilinear(texture: torch.Tensor, uv: torch.Tensor) -> torch.Tensor:
    """Return bilinear samples [N,C] of a texture [H,W,C] at uv, computed by torch's grid_sample."""
    sampled = torch.nn.functional.grid_sample(
        texture.permute(2, 0, 1)[None], uv[None, None] * 2 - 1, align_corners=False, padding_mode="border"
    )
    return sampled[0, :, 0].T
