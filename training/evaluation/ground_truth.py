"""Procedural objects as ground truth: their surface on the grid of a run, and their true materials."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dataset.cameras import step_generator
from dataset.procedural import CATEGORIES, ProceduralObject, make_object
from dataset.procedural.materials import MATERIALS, dressed
from dataset.procedural.random_draw import Draw
from geometry.dmtet import GeometryConfig
from geometry.marching_tets import marching_tetrahedra
from geometry.tet_grid import make_tet_grid
from render.mesh import Mesh, make_mesh
from training.evaluation.surface_quality import roughness

SHAPE_STREAM, MATERIAL_STREAM = 21, 22
# INSTANCES: number of objects over which the roughness of a category is averaged. MATERIAL_DRAWS: number of
# random draws over which a material is averaged.
INSTANCES, MATERIAL_DRAWS = 3, 8

# A function from world points [N,3] to linear albedo kd and ks (occlusion, roughness, metallic).
TrueMaterial = Callable[[Float[Tensor, "N 3"]], tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]]


def true_object(category: str, seed: int) -> ProceduralObject:
    """Return the procedural object with the given category and seed."""
    return make_object(category, step_generator(seed, CATEGORIES.index(category), 0, SHAPE_STREAM))


def true_mesh(subject: ProceduralObject, config: GeometryConfig, device: torch.device) -> Mesh:
    """Mesh the object's signed distance by marching tetrahedra on the grid of the config."""
    grid = make_tet_grid(config.dmtet_grid, config.mesh_scale)
    v_pos, faces = marching_tetrahedra(
        grid.v_pos, subject.signed_distance(grid.v_pos), grid.tets, grid.edges, grid.tet_edges
    )
    return make_mesh(v_pos.to(device), faces.to(device))


def true_roughness(category: str, config: GeometryConfig) -> float:
    """Return the mean surface roughness of INSTANCES objects of a category, in degrees (see `roughness`)."""
    cpu = torch.device("cpu")
    values = [roughness(true_mesh(true_object(category, seed), config, cpu)) for seed in range(INSTANCES)]
    return sum(values) / len(values)


def material_name(category: str, seed: int) -> str:
    """Return the name of a trial's material.

    Consecutive categories and consecutive seeds have different materials.
    """
    names = list(MATERIALS)
    return names[(5 * CATEGORIES.index(category) + seed) % len(names)]


def true_material(subject: ProceduralObject, name: str) -> TrueMaterial:
    """Return the mean of MATERIAL_DRAWS random draws of a material, because the shades vary by ±10 %."""
    draw = Draw(step_generator(0, CATEGORIES.index(subject.kind), 0, MATERIAL_STREAM))
    material_draws = [dressed(subject, name, draw) for _ in range(MATERIAL_DRAWS)]

    def material(points: Float[Tensor, "N 3"]) -> tuple[Tensor, Tensor]:
        kd, ks = zip(*(material_draw.material(points) for material_draw in material_draws), strict=True)
        return torch.stack(kd).mean(0), torch.stack(ks).mean(0)

    return material
