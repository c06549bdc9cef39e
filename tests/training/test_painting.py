"""Meshes with own textures: the fit, the paint mask, the parts and the exported files, without a prior."""

from pathlib import Path

import torch
from export_shapes import bumpy_ball

from configs.schema import Config, parse_config
from dataset.cameras import step_generator
from geometry.fixed_mesh import load_fixed_mesh
from render.mesh_io.load_materials import load_materials
from render.mesh_io.write_glb import write_glb
from render.raster.select import choose_rasteriser
from render.texturing.bake import bake, texel_owners
from render.texturing.given import given_texture
from render.texturing.uv import unwrap
from training.tasks import Task, build_task

CPU = torch.device("cpu")
VALUES = {
    "mode": "appearance_modeling",
    "device": "cpu",
    "env_resolution": 64,
    "iter": 400,
    "coarse_iter": 400,
    "learning_rate": 0.04,
    "hash_n_levels": 6,
    "hash_log2_hashmap_size": 13,
    "hash_max_resolution": 64,
}


def config_for(folder: Path, mesh: Path, **values: object) -> Config:
    return parse_config({**VALUES, "out_dir": str(folder), "base_mesh": str(mesh), **values}, "test")


def fit(task: Task, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, float]:
    """Run the fit; returns the numbers of its last step."""
    for step in range(1, steps + 1):
        optimizer.zero_grad(set_to_none=True)
        loss, stats = task.fit(step_generator(0, 0, step))
        loss.backward()
        optimizer.step()
    return {name: float(value) for name, value in stats.items()}


def psnr(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """PSNR of each channel over texels [N,C] of bytes, dB."""
    squared = ((one.double() - other.double()) / 255).square().mean(0)
    return -10 * squared.clamp_min(1e-10).log10()


def object_field(points):
    """Areas of three colours with sharp borders, and waves in roughness, metallic and normal."""
    x, y, z = points.unbind(-1)
    main = torch.stack([z, x, y], -1).argmax(-1)
    tilt = torch.stack([0.3 * torch.sin(12 * x), 0.2 * torch.cos(12 * y), torch.ones_like(z)], -1)
    return {
        "kd": 0.05 + 0.85 * torch.nn.functional.one_hot(main, 3).float(),
        "ks": torch.stack([0 * x, 0.6 + 0.3 * torch.sin(6 * x), 0.3 + 0.2 * torch.sin(5 * y)], -1),
        "normal": torch.nn.functional.normalize(tilt, dim=-1),
    }


def test_the_fit_alone_reproduces_the_textures_of_an_object(tmp_path):
    size, rasteriser = (64, 64), choose_rasteriser(CPU, "auto")
    mesh = unwrap(bumpy_ball(2), "xatlas", size, 4)
    write_glb(tmp_path / "object.glb", mesh, bake(mesh, object_field, size, rasteriser))
    config = config_for(tmp_path / "run", tmp_path / "object.glb", init_textures=True, texture_res=size)
    task, optimizer, _ = build_task(config)
    stats = fit(task, optimizer, 100)
    task.export()
    given, made = (
        given_texture(load_materials(path)[0], size)
        for path in (tmp_path / "object.glb", tmp_path / "run/dmtet_mesh/mesh.glb")
    )
    covered = texel_owners(load_fixed_mesh(tmp_path / "object.glb"), size, rasteriser) >= 0
    reached = psnr(given[covered], made[covered])
    assert reached.min() > 35
    # The logged values are those of random points of the surface, too.
    assert min(stats["kd_psnr"], stats["ks_psnr"], stats["normal_psnr"]) > 25
