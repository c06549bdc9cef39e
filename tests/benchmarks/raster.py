"""Compare the rasterisers: milliseconds of each part of a step, and accuracy of the silhouette gradient.

    python3 tests/benchmarks/raster.py [--faces 20000 130000 400000 700000] [--grids 128 256] [--json FILE]

The times of the parts are medians over steps. The GPU is synchronised before and after each part. Each step
uses a new tensor of faces, so no data of the mesh is cached. The last column is the time of a whole step
without synchronisation between the parts. The scene is a sphere. Normals and positions (6 channels) are
interpolated. Normals and mask (4 channels) are antialiased.

The silhouette gradient is the gradient of Σ mask · weight with smooth random weights. It is computed with
respect to the shift and the scale of an ellipsoid in the image. The mesh of the ellipsoid is extracted by
marching tetrahedra. The reference is a central difference of a supersampled mask. The share is the projection
of the gradient on the reference, divided by the norm of the reference. The error is the norm of the
difference, divided by the norm of the reference.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# ruff: noqa: E402
import torch

from benchmarks.stages import sphere
from geometry.marching_tets import marching_tetrahedra
from geometry.tet_grid import make_tet_grid
from render.camera import orbit, transform_points
from render.mesh import Mesh
from render.raster.interface import Rasteriser
from render.raster.reference import ReferenceRasteriser
from render.raster.select import choose_rasteriser

WARM_UP = 3
NAMES = ("nvdiffrast", "nvdiffrast, edge rule", "triton", "numba", "reference")
PARTS = ("rasterize", "interpolate", "antialias", "antialias back", "interpolate back", "rasterize back")


def build(name: str, device: torch.device) -> Rasteriser:
    """Return the rasteriser of this name. Raise ValueError if it cannot run on this machine."""
    if name == "nvdiffrast, edge rule":
        choose_rasteriser(device, "nvdiffrast")
        from render.raster.nvdiffrast_backend import NvdiffrastRasteriser

        return NvdiffrastRasteriser(device, antialias="edge")
    return choose_rasteriser(device, name)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def step(rasteriser: Rasteriser, mesh: Mesh, clip: torch.Tensor, size: int, watched: bool) -> list[float]:
    """Run one step. Return the seconds of each part if `watched`, otherwise the seconds of the whole step."""
    device = clip.device
    clip = clip.detach().requires_grad_()
    values = torch.cat([mesh.v_pos, mesh.v_nrm], -1).detach().requires_grad_()
    faces = mesh.faces.clone()
    times = [now(device)]

    def done() -> None:
        if watched:
            times.append(now(device))

    rast = rasteriser.rasterize(clip, faces, (size, size))
    done()
    image = rasteriser.interpolate(values, rast, faces)
    done()
    colour = torch.cat([image[..., 3:], (rast[..., 3:] > 0).float()], -1)
    smooth = rasteriser.antialias(colour, rast, clip, faces)
    done()
    by_outline, by_colour = torch.autograd.grad(smooth.square().sum(), (clip, colour), retain_graph=True)
    done()
    by_values, by_rast = torch.autograd.grad(colour, (values, rast), by_colour, retain_graph=True)
    done()
    torch.autograd.grad(rast, clip, by_rast)
    times.append(now(device))
    return [end - begin for begin, end in pairwise(times)]


def measure(rasteriser: Rasteriser, mesh: Mesh, batch: int, size: int, steps: int) -> dict[str, float]:
    """Return the milliseconds of each part and of the whole step."""
    clip = transform_points(orbit(batch, (size, size)).to(mesh.v_pos.device).world_to_clip, mesh.v_pos)
    for _ in range(WARM_UP):
        step(rasteriser, mesh, clip, size, watched=True)
    rows = [step(rasteriser, mesh, clip, size, watched=True) for _ in range(steps)]
    found = {
        part: 1e3 * statistics.median(row) for part, row in zip(PARTS, zip(*rows, strict=True), strict=True)
    }
    whole = [sum(step(rasteriser, mesh, clip, size, watched=False)) for _ in range(steps)]
    return found | {"whole": 1e3 * statistics.median(whole)}


def marched(grid: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vertices and faces of an ellipsoid, extracted by marching tetrahedra on the given grid."""
    tets = make_tet_grid(grid, 2.1)
    level = (tets.v_pos / torch.tensor([0.75, 0.55, 0.65])).norm(dim=-1) - 1
    vertices, faces = marching_tetrahedra(tets.v_pos, level, tets.tets, tets.edges, tets.tet_edges)
    return vertices.to(device), faces.to(device)


def moved(clip: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Scale the positions by the third parameter, then shift them by the first two (in half image widths)."""
    xy = clip[..., :2] * parameters[2] + parameters[:2] * clip[..., 3:]
    return torch.cat([xy, clip[..., 2:]], -1)


def weighted_areas(
    rasteriser: Rasteriser, clip: torch.Tensor, faces: torch.Tensor, weights: torch.Tensor, factor: int
) -> torch.Tensor:
    """Compute Σ mask · weight [N] for a mask with factor² samples per pixel. weights: [N,B,S,S]."""
    size = weights.shape[-1]
    areas = torch.zeros(len(weights), dtype=torch.float64, device=clip.device)
    for view in range(len(clip)):
        fine = rasteriser.rasterize(clip[view, None], faces, (size * factor, size * factor))
        mask = torch.nn.functional.avg_pool2d((fine[..., 3] > 0).float()[:, None], factor)[0, 0]
        areas += (mask.double() * weights[:, view]).sum((1, 2))
    return areas


def outline_truth(
    rasteriser: Rasteriser, clip: torch.Tensor, faces: torch.Tensor, weights: torch.Tensor, factor: int
) -> torch.Tensor:
    """Compute d Σ mask · weight / d (shift, scale) [N,3] by central differences with a step of one pixel."""
    columns, change = [], 2 / weights.shape[-1]
    start = torch.tensor([0.0, 0.0, 1.0], device=clip.device)
    for index in range(3):
        shift = change * torch.eye(3, device=clip.device)[index]
        higher, lower = (
            weighted_areas(rasteriser, moved(clip, start + sign * shift), faces, weights, factor)
            for sign in (1, -1)
        )
        columns.append((higher - lower) / (2 * change))
    return torch.stack(columns, -1)


def outline_gradient(
    rasteriser: Rasteriser, clip: torch.Tensor, faces: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Compute d Σ mask · weight / d (shift, scale) [N,3] by backpropagation through the antialiasing."""
    parameters = torch.tensor([0.0, 0.0, 1.0], device=clip.device, requires_grad=True)
    place = moved(clip, parameters)
    rast = rasteriser.rasterize(place, faces, tuple(weights.shape[-2:]))
    mask = rasteriser.antialias((rast[..., 3:] > 0).float(), rast, place, faces)
    rows = [
        torch.autograd.grad((mask[..., 0] * weight).sum(), parameters, retain_graph=True)[0]
        for weight in weights
    ]
    return torch.stack(rows).double()


def smooth_weights(count: int, batch: int, size: int, device: torch.device) -> torch.Tensor:
    """Return smooth random weights [count,batch,size,size] with about ten periods across the image."""
    noise = torch.randn(count, batch, 10, 10, generator=torch.Generator().manual_seed(1))
    weights = torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic", align_corners=True)
    return weights.to(device)


def outline_shares(
    rasterisers: dict[str, Rasteriser],
    grid: int,
    size: int,
    device: torch.device,
    factor: int = 8,
    batch: int = 4,
) -> dict:
    """Return the share and the error of the silhouette gradient of each rasteriser."""
    vertices, faces = marched(grid, device)
    clip = transform_points(orbit(batch, (size, size)).to(device).world_to_clip, vertices)
    weights = smooth_weights(8, batch, size, device)
    supersampler = rasterisers.get("triton") or rasterisers.get("numba") or ReferenceRasteriser()
    truth = outline_truth(supersampler, clip, faces, weights, factor)
    found = {"faces": len(faces)}
    for name, rasteriser in rasterisers.items():
        got = outline_gradient(rasteriser, clip, faces, weights)
        share = ((got * truth).sum() / truth.square().sum()).item()
        found[name] = {"share": share, "error": ((got - truth).norm() / truth.norm()).item()}
    return found


def table(record: dict) -> str:
    """Return the measurements as Markdown tables."""
    lines = ["| ms | faces | " + " | ".join((*PARTS, "whole")) + " |", "| --- " * (len(PARTS) + 3) + "|"]
    for row in record["times"]:
        cells = [f"{row['ms'][part]:.2f}" for part in (*PARTS, "whole")]
        lines.append(f"| {row['rasteriser']} | {row['faces']} | " + " | ".join(cells) + " |")
    lines += ["", "| outline's gradient | grid | faces | share kept | relative error |", "| --- " * 5 + "|"]
    for grid, found in record["shares"].items():
        for name, values in found.items():
            if name != "faces":
                cells = f"{100 * values['share']:.1f} % | {values['error']:.3f}"
                lines.append(f"| {name} | {grid} | {found['faces']} | {cells} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--faces", type=int, nargs="*", default=[20_000, 130_000, 400_000, 700_000])
    parser.add_argument("--grids", type=int, nargs="*", default=[128, 256])
    parser.add_argument("--rasterisers", nargs="*", choices=NAMES, help="default: all that run here")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="a file to write")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rasterisers = {}
    for name in options.rasterisers or NAMES:
        try:
            rasterisers[name] = build(name, device)
        except ValueError as error:
            sys.stdout.write(f"{name} is left out: {error}\n")
    times = []
    for count in options.faces:
        mesh = sphere(count).to(device)
        for name, rasteriser in rasterisers.items():
            ms = measure(rasteriser, mesh, options.batch, options.size, options.steps)
            times.append({"rasteriser": name, "faces": len(mesh.faces), "ms": ms})
    shares = {grid: outline_shares(rasterisers, grid, options.size, device) for grid in options.grids}
    record = {
        "times": times,
        "shares": shares,
        "batch": options.batch,
        "size": options.size,
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    sys.stdout.write(
        f"batch {options.batch}, {options.size}², {record['hardware']}, torch {record['torch']}, "
        f"{record['date']}\n\n{table(record)}\n"
    )
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
