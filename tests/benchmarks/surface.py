"""Compare torch with the kernels on a GPU: time from vertices to the normal image, without the rasteriser.

    python3 tests/benchmarks/surface.py [--faces 20000 190000 700000] [--batch 4] [--size 512] [--steps 50]

The scene is a sphere that fills most of each image. Times are medians in milliseconds after a warm-up.
"device" is the time between two CUDA events on an otherwise empty queue, including launch latency. "host" is
the time until the calls return, measured while the GPU is busy with other work.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# ruff: noqa: E402
import torch

from benchmarks.hash_grid import milliseconds
from benchmarks.stages import sphere
from render import gbuffer, mesh
from render.camera import orbit
from render.kernels import gbuffer_triton, normal_image_triton, vertex_normals_triton
from render.mesh import Mesh
from render.normal_image import normal_image_torch
from render.raster.select import choose_rasteriser

WARM_UP = 3
# During a measured call, the GPU sleeps for this number of clock cycles (about 10 ms). This is longer than
# any of the measured calls.
BUSY = 20_000_000


def host_milliseconds(act: Callable[[], object], steps: int) -> float:
    times = []
    for _ in range(WARM_UP + steps):
        torch.cuda.synchronize()
        torch.cuda._sleep(BUSY)
        begin = time.perf_counter()
        act()
        times.append(1e3 * (time.perf_counter() - begin))
    torch.cuda.synchronize()
    return statistics.median(times[WARM_UP:])


def forward_and_both(function: Callable, leaves: tuple[torch.Tensor, ...]) -> tuple[Callable, Callable]:
    """Return two callables: the forward pass, and the forward pass followed by the backward pass."""
    found = function()
    grad_output = torch.randn_like(found)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return function()

    return forward, lambda: torch.autograd.grad(function(), leaves, grad_output)


def ways(surface: Mesh, batch: int, size: int) -> dict[str, Callable[[], object]]:
    device = surface.v_pos.device
    views, rasteriser = orbit(batch, (size, size)).to(device), choose_rasteriser(device)
    points = gbuffer.rasterize_gbuffer(surface, views, rasteriser)
    inputs = torch.cat([surface.v_pos, surface.v_nrm], -1)
    values = rasteriser.interpolate(inputs, points.rast, surface.faces).detach().requires_grad_()
    v_pos, rotation = surface.v_pos.clone().requires_grad_(), views.normal_rotation
    fragments = gbuffer.Fragments(points.clip, points.rast, values)
    moved = replace(surface, v_pos=v_pos)
    dense = values, points.rast, surface.faces, v_pos, views.position, rotation
    given = values, points.rast, points.pixel, surface.faces, v_pos, views.position

    parts = {
        "smooth normals: torch": (lambda: mesh.smooth_normals_torch(v_pos, surface.faces), (v_pos,)),
        "smooth normals: kernels": (
            lambda: vertex_normals_triton.smooth_normals(v_pos, surface.faces),
            (v_pos,),
        ),
        "surface points: torch": (lambda: gbuffer.surface_points(*given)[1], (values, v_pos)),
        "surface points: kernels": (lambda: gbuffer_triton.surface_points(*given)[1], (values, v_pos)),
        "image: torch": (
            lambda: normal_image_torch(fragments, moved, views, True),
            (values, v_pos),
        ),
        "image: kernels": (lambda: normal_image_triton.normal_image(*dense, True), (values, v_pos)),
    }
    found = {}
    for name, (function, leaves) in parts.items():
        found[name], found[f"{name}, and back"] = forward_and_both(function, leaves)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--faces", type=int, nargs="*", default=[20_000, 190_000, 700_000])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("error: this benchmark needs a CUDA device\n")
        return 2
    head = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    sys.stdout.write(f"batch {options.batch}, {options.size}², {head}\n")
    for count in options.faces:
        surface = sphere(count).to("cuda")
        sys.stdout.write(f"\n| ms, {len(surface.faces)} faces | device | host |\n| --- | --- | --- |\n")
        for name, act in ways(surface, options.batch, options.size).items():
            device, host = milliseconds(act, options.steps), host_milliseconds(act, options.steps)
            sys.stdout.write(f"| {name} | {device:.3f} | {host:.3f} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
