"""Measure the hash encoding on a GPU: the torch reference and each launch configuration of the kernels.

    python3 tests/benchmarks/hash_grid.py [--json FILE] [--steps 20]

There are four point sets: all vertices of the tetrahedral grid 128, all vertices of grid 256, the vertices of
grid 256 near a sphere, and random points. The third set represents a run, in which only vertices near the
surface receive a gradient. The number of random points is about the number of covered pixels in four images
of 512² pixels. The first printed table is about the encoding, the second about the other operations of the
mesh extraction. Times are medians after a warm-up, measured between two CUDA events.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

# ruff: noqa: E402
import torch

from geometry.dmtet import DMTet, GeometryConfig
from geometry.kernels import sdf_network_triton
from geometry.marching_tets import compact_topology, compact_topology_torch
from geometry.tet_grid import make_tet_grid
from render.encoding import hash_grid_triton, reference
from render.encoding.hash_grid import HashGrid

WARM_UP = 3
MATERIAL_POINTS = int(262144 * 4 * 0.3)


def milliseconds(act: Callable[[], object], steps: int) -> float:
    times = []
    for _ in range(WARM_UP + steps):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        act()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[WARM_UP:])


def point_sets() -> dict[str, torch.Tensor]:
    """Return {name: points [N,3]} on the GPU. The coordinates are in [0, 1]."""
    found = {}
    for name in (128, 256):
        vertices = make_tet_grid(name, 1.0).v_pos
        found[f"grid {name}"] = vertices + 0.5
    distance = (vertices.norm(dim=-1) - 0.3).abs()
    found["surface of 256"] = vertices[distance < 0.01] + 0.5
    found["material"] = torch.rand(MATERIAL_POINTS, 3)
    return {name: points.clamp(0, 1).cuda() for name, points in found.items()}


def in_cell_order(points: torch.Tensor, cells: int = 64) -> torch.Tensor:
    """Return the points sorted along a Morton curve through cells³ cells."""
    cell = (points * cells).long().clamp(max=cells - 1)
    number = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for bit in range(cells.bit_length() - 1):
        for axis in range(3):
            number |= (cell[:, axis] >> bit & 1) << (3 * bit + axis)
    return points[number.argsort()].contiguous()


def operations(points: torch.Tensor, grid: HashGrid) -> dict[str, Callable[[], object]]:
    table, levels = grid.table.detach(), grid.levels
    grad = torch.randn(len(points), grid.width, device=points.device)
    ordered = in_cell_order(points)
    found = {
        "forward: torch": lambda: reference.encode(points, table, levels),
        "backward: torch": lambda: reference.encode_backward(points, grad, levels),
    }

    def add(name: str, function: Callable, *arguments: object, **options: object) -> None:
        found[name] = lambda: function(*arguments, **options)

    for order, given in (("as they come", points), ("in cell order", ordered)):
        for group in (1, 4, 16):
            for block in (64, 128, 256):
                name = f"forward: {order}, {group} levels a program, block {block}"
                add(name, hash_grid_triton.encode, given, table, levels, group=group, block=block)
        for runs in (False, True):
            for block in (128, 256):
                name = f"backward: {order}, {'runs' if runs else 'single'}, block {block}"
                add(name, hash_grid_triton.encode_backward, given, grad, levels, runs=runs, block=block)
    return found


def surface(grid: int) -> DMTet:
    """Return a geometry field with the default config, whose surface is approximately a sphere."""
    dmtet = DMTet(GeometryConfig(dmtet_grid=grid, mesh_scale=2.0)).cuda()
    dmtet.limit_to_band(dmtet.v_pos.norm(dim=-1) - 0.7, 0.5)
    return dmtet


def ways_to_a_mesh(dmtet: DMTet) -> dict[str, Callable[[], object]]:
    network, inside = dmtet.network, dmtet.start < 0
    encoded = network.encoding.precompute(dmtet.v_pos)().detach()
    weights = [layer.weight for layer in network.mlp[::2]]
    tables = dmtet.tets, dmtet.edges, dmtet.tet_edges

    @torch.no_grad()
    def layers() -> torch.Tensor:
        return network.mlp(encoded)[:, 0]

    def whole_field() -> None:
        sdf, v_pos = dmtet.field()
        (sdf.sum() + v_pos.sum()).backward()

    def mesh_and_back() -> None:
        mesh = dmtet.mesh()
        (mesh.v_pos.sum() + mesh.v_nrm[:, 0].sum()).backward()

    return {
        "network without a gradient: torch": layers,
        "network without a gradient: kernel": lambda: sdf_network_triton.distances(encoded, *weights),
        "topology: torch": lambda: compact_topology_torch(inside, *tables),
        "topology: kernels": lambda: compact_topology(inside, *tables),
        "whole field and back": whole_field,
        "mesh": dmtet.mesh,
        "mesh and back": mesh_and_back,
    }


def table(found: dict[str, dict[str, float]]) -> str:
    lines = ["| ms | " + " | ".join(found) + " |", "| --- |" + " --- |" * len(found)]
    for way in next(iter(found.values())):
        lines.append(f"| {way} | " + " | ".join(f"{values[way]:.3f}" for values in found.values()) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="a file to write")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("error: this benchmark needs a CUDA device\n")
        return 2
    grid = HashGrid(torch.zeros(3), torch.ones(3)).cuda()
    encoding = {
        f"{name} ({len(points)})": {
            way: milliseconds(act, options.steps) for way, act in operations(points, grid).items()
        }
        for name, points in point_sets().items()
    }
    mesh = {}
    for name in (128, 256):
        dmtet = surface(name)
        column = f"grid {name}, {len(dmtet.mesh().faces)} faces"
        mesh[column] = {way: milliseconds(act, options.steps) for way, act in ways_to_a_mesh(dmtet).items()}
    head = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    sys.stdout.write(f"{head}\n\n{table(encoding)}\n\n{table(mesh)}\n")
    if options.json:
        record = {"hardware": head, "encoding_ms": encoding, "mesh_ms": mesh}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
