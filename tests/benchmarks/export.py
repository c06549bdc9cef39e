"""Measure each part of an export (unwrapping, baking, each file) for a smooth and a noisy surface.

    python3 tests/benchmarks/export.py --faces 400000 --texture_res 2048
    python3 tests/benchmarks/export.py --kind noisy --faces 1300000 --unwrap projection --device cuda

The smooth surface is a ball with bumps, similar to the result of a run with grid 256. The noisy surface is
the zero level set of a ball's signed distance plus noise at every vertex. This surface has thousands of
separate components, like a surface that was optimized with a randomly initialised prior. The baked field is a
material with the default encoding. The compile time of numba is measured separately on a small ball, because
numba compiles its functions only once per machine.
"""

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# This file is run as a script, so the repository root is added to the import path.
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

# ruff: noqa: E402
import torch

from geometry.marching_tets import marching_tetrahedra
from geometry.tet_grid import make_tet_grid
from render.mesh import Mesh, make_mesh
from render.mesh_io.write_glb import write_glb
from render.mesh_io.write_obj import write_obj
from render.raster.select import choose_rasteriser
from render.shade.material import MaterialConfig, MaterialField
from render.texturing.bake import bake
from render.texturing.uv import unwrap, uv_areas, uv_fault

SIDE = 2.1
# SCALE is {kind: (face count at grid 256, exponent)}. The face count is proportional to (grid resolution) **
# exponent.
SCALE = {"smooth": (4.05e5, 2), "noisy": (9.6e6, 3)}


def surface(kind: str, faces: int) -> Mesh:
    """Return a surface with about the given number of faces. kind: "smooth" or "noisy"."""
    at_256, power = SCALE[kind]
    grid = make_tet_grid(round(256 * (faces / at_256) ** (1 / power)), SIDE)
    x, y, z = grid.v_pos.unbind(-1)
    if kind == "smooth":
        bumps = 0.05 * torch.sin(9 * x) * torch.cos(8 * y) * torch.sin(7 * z + 1)
        sdf = grid.v_pos.norm(dim=-1) - 0.97 + bumps + 0.03 * torch.sin(23 * x + 11 * y) * torch.cos(21 * z)
    else:
        noise = torch.randn(len(grid.v_pos), generator=torch.Generator().manual_seed(0))
        sdf = 2.5 * (grid.v_pos.norm(dim=-1) - 0.75) + noise
    at_wall = grid.v_pos.abs().amax(-1) > SIDE / 2 - 1e-4
    sdf = torch.where(at_wall, sdf.clamp(min=0.01), sdf)
    return make_mesh(*marching_tetrahedra(grid.v_pos, sdf, grid.tets, grid.edges, grid.tet_edges))


class Clock:
    """Measure the elapsed seconds of named blocks of code."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[name] = self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure(mesh: Mesh, method: str, side: int, folder: Path) -> dict:
    """Return the seconds of each part of the export, and statistics of the result."""
    device = mesh.v_pos.device
    rasteriser, clock = choose_rasteriser(device), Clock(device)
    low, high = mesh.v_pos.amin(0), mesh.v_pos.amax(0)
    torch.manual_seed(0)
    material = MaterialField(MaterialConfig(), low - 0.01, high + 0.01).to(device)

    def field(points: torch.Tensor) -> dict[str, torch.Tensor]:
        values = material(points)
        return {"kd": values.kd, "ks": values.ks, "normal": values.normal}

    with clock.timing("unwrap"):
        unwrapped = unwrap(mesh, method, (side, side), 4)
    with clock.timing("bake"):
        textures = bake(unwrapped, field, (side, side), rasteriser)
    with clock.timing("OBJ and PNG"):
        write_obj(folder, unwrapped, textures)
    with clock.timing("GLB"):
        write_glb(folder / "mesh.glb", unwrapped, textures)
    total = sum(clock.seconds.values())
    # The UV check is not part of an export. It is used only in runs that paint a user's mesh.
    with clock.timing("check of the uv"):
        fault = uv_fault(unwrapped, rasteriser)
    return {
        "faces": len(mesh.faces),
        "seconds": clock.seconds,
        "total": total,
        "filled": float(uv_areas(unwrapped).sum()),
        "fault": fault,
        "megabytes": {file.name: file.stat().st_size / 1e6 for file in sorted(folder.iterdir())},
    }


def table(records: dict[str, dict]) -> str:
    """Return a Markdown table with one row per part and one column per surface."""
    heads = [f"{kind}, {record['faces']} faces" for kind, record in records.items()]
    lines = ["| seconds | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]

    def row(title: str, cells: list[str]) -> None:
        lines.append(f"| {title} | " + " | ".join(cells) + " |")

    for name in next(iter(records.values()))["seconds"]:
        row(name, [f"{record['seconds'][name]:.1f}" for record in records.values()])
    row("**export**", [f"{record['total']:.1f}" for record in records.values()])
    row("texture filled, %", [f"{100 * record['filled']:.0f}" for record in records.values()])
    row("fault of the uv", [record["fault"] or "none" for record in records.values()])
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--kind", choices=[*SCALE, "both"], default="both")
    parser.add_argument("--faces", type=int, default=400_000)
    parser.add_argument("--texture_res", type=int, default=2048)
    parser.add_argument("--unwrap", default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="a file to write")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device(options.device)
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in ("xatlas", "projection"):
            measure(surface("smooth", 3000).to(device), method, 64, Path(folder))
        for kind in SCALE if options.kind == "both" else [options.kind]:
            mesh = surface(kind, options.faces).to(device)
            records[kind] = measure(mesh, options.unwrap, options.texture_res, Path(folder))
    gpu = (
        torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    )
    where = (
        f"{gpu}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    sys.stdout.write(f"export at {options.texture_res}², {where}\n\n{table(records)}\n")
    if options.json:
        record = {"hardware": where, "texture_res": options.texture_res, "surfaces": records}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
