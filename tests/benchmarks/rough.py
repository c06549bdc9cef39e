"""Time of a training step on a rough surface without the prior, in total and by GPU kernel.

    python3 tests/benchmarks/rough.py [--grid 256] [--batch 4] [--faces 1000000] [--json FILE]
    python3 tests/benchmarks/rough.py --code OTHER_CHECKOUT --save STATE.pt
    python3 tests/benchmarks/rough.py --load STATE.pt

The surface is a fitted ellipsoid. Noise is added to the hash tables until the surface has about --faces
faces. A step renders the normal image, computes the gradients of a weighted sum of its pixels and runs the
optimizer with a learning rate of 0. The total is the median over steps between two CUDA events.

--code measures the code of another checkout. --save writes the surface, the image and the gradients of one
step. --load uses that surface and reports the differences from the saved image and gradients. The values
differ by rounding. A value of the field near zero can change its sign by rounding, which changes some faces.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from pathlib import Path

CODE = Path(__file__).resolve().parents[2]
if "--code" in sys.argv[:-1]:
    CODE = Path(sys.argv[sys.argv.index("--code") + 1]).resolve()
sys.path[:0] = [str(CODE), str(CODE / "tests")]

# ruff: noqa: E402
import torch

from dataset.cameras import CameraConfig, sample_cameras, step_generator
from geometry.dmtet import DMTet, GeometryConfig
from render.raster.select import choose_rasteriser
from render.scene import GeometryScene

AXES = (0.56, 0.74, 0.56)
# Modules whose kernels have the same names. The profile shows the names of the modules too.
KERNEL_MODULES = (
    "render.encoding.hash_grid_triton",
    "render.kernels.gbuffer_triton",
    "render.kernels.normal_image_triton",
    "render.kernels.vertex_normals_triton",
    "geometry.kernels.sdf_network_triton",
)


def name_kernels() -> None:
    """Add the name of the module to the kernel names."""
    from triton.runtime.jit import JITFunction

    for name in KERNEL_MODULES:
        module = importlib.import_module(name)
        for attribute, kernel in vars(module).items():
            if isinstance(kernel, JITFunction) and attribute.startswith("_"):
                short = name.rsplit(".", 1)[-1].removesuffix("_triton")
                kernel._repr = lambda _, full=f"{short}{attribute}": full


def build_surface(grid: int, device: torch.device, fit: int) -> DMTet:
    """Return a surface that is fitted to an ellipsoid."""
    surface = DMTet(GeometryConfig(dmtet_grid=grid, mesh_scale=2.4), step_generator(0, 0, 0)).to(device)
    optimizer = torch.optim.AdamW(surface.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-15)
    scale = torch.tensor(AXES, device=device)
    for _ in range(fit):
        points = surface.v_pos[torch.randint(len(surface.v_pos), (20_000,), device=device)]
        points = points + 0.01 * torch.randn_like(points)
        optimizer.zero_grad()
        surface.fit_loss(points, ((points / scale).norm(dim=-1) - 1) * min(AXES)).backward()
        optimizer.step()
    return surface


@torch.no_grad()
def roughen(surface: DMTet, faces: int) -> None:
    """Add noise to the hash tables until the surface has about the given number of faces."""
    table = surface.network.encoding.table
    smooth, noise = table.clone(), torch.randn_like(table)
    low, high = 0.0, 1.0
    for _ in range(14):
        middle = (low * high) ** 0.5 if low else high / 8
        table.copy_(smooth + middle * noise)
        if len(surface.mesh().faces) < faces:
            low = middle
        else:
            high = middle
    table.copy_(smooth + high * noise)


class RoughStep:
    """A step of geometry modeling whose loss is a weighted sum of the pixels."""

    def __init__(self, surface: DMTet, batch: int, size: int):
        device = surface.v_pos.device
        self.surface = surface
        self.scene = GeometryScene(surface, choose_rasteriser(device), torch.nn.Identity(), False)
        self.optimizer = torch.optim.AdamW(
            surface.parameters(), lr=0.0, betas=(0.9, 0.99), eps=1e-15, fused=device.type == "cuda"
        )
        generator = step_generator(0, 0, 1)
        config = CameraConfig(fovy_range=(25.71, 45.0), elevation_range=(-10.0, 45.0))
        self.views = sample_cameras(config, batch, (size, size), generator).to(device)
        self.weight = torch.randn(batch, size, size, 4, generator=generator).to(device)
        self.image: torch.Tensor | None = None

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        image = self.scene(self.views)
        (image * self.weight).sum().backward()
        self.optimizer.step()
        self.image = image.detach()


def step_times(step: RoughStep, steps: int) -> list[float]:
    """Return the milliseconds of each step."""
    times = []
    for _ in range(steps):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return times


def kernel_times(step: RoughStep, steps: int) -> dict[str, dict[str, float]]:
    """Return milliseconds and launches per step of each kernel, slowest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    return {
        event.key[:90]: {
            "ms": round(event.self_device_time_total / 1e3 / steps, 4),
            "launches": event.count / steps,
        }
        for event in events
    }


def state_of(step: RoughStep) -> dict:
    gradients = {name: parameter.grad for name, parameter in step.surface.named_parameters()}
    mesh = step.scene.mesh
    state = {"weights": step.surface.state_dict(), "image": step.image, "gradients": gradients}
    return {**state, "faces": mesh.faces, "v_pos": mesh.v_pos.detach()}


def differences(state: dict, expected: dict) -> dict[str, float]:
    """Return the shares of equal faces and of changed pixels, and the relative errors of the gradients."""
    same_shape = state["faces"].shape == expected["faces"].shape
    same_faces = (state["faces"] == expected["faces"]).all(-1).float().mean().item() if same_shape else 0.0
    changed = ((state["image"] - expected["image"]).abs().amax(-1) > 1e-3).float().mean().item()
    found = {"same_faces": same_faces, "changed_pixels": changed}
    for name, gradient in state["gradients"].items():
        target = expected["gradients"][name]
        found[f"error of {name}"] = ((gradient - target).norm() / target.norm()).item()
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--grid", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--faces", type=int, default=1_000_000, help="0: keep the fitted ellipsoid")
    parser.add_argument("--fit", type=int, default=300)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--code", type=Path, help="another checkout whose code is measured")
    parser.add_argument("--save", type=Path, help="a file for the surface and its gradients")
    parser.add_argument("--load", type=Path, help="a file that --save wrote")
    parser.add_argument("--json", type=Path, help="a file to write")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    expected = torch.load(options.load, map_location=device) if options.load else None
    if device.type == "cuda":
        name_kernels()
    surface = build_surface(options.grid, device, 0 if expected else options.fit)
    if expected:
        surface.load_state_dict(expected["weights"])
    elif options.faces:
        roughen(surface, options.faces)
    step = RoughStep(surface, options.batch, options.size)
    step()
    record = {
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "faces": len(step.scene.mesh.faces),
        "vertices": len(step.scene.mesh.v_pos),
        "covered": int(step.image[..., 3].gt(0).sum()),
    }
    state = state_of(step)
    if options.save:
        torch.save(state, options.save)
    if expected:
        record["differences"] = differences(state, expected)
    if device.type == "cuda":
        for _ in range(4):
            step()
        record["total_ms"] = statistics.median(step_times(step, options.steps))
        record["kernels"] = kernel_times(step, 5)
        record["kernel_sum_ms"] = sum(kernel["ms"] for kernel in record["kernels"].values())
    kernels = record.get("kernels", {})
    sys.stdout.write(json.dumps({name: value for name, value in record.items() if name != "kernels"}) + "\n")
    for name, kernel in list(kernels.items())[:45]:
        sys.stdout.write(f"{kernel['ms']:8.3f} ms {kernel['launches']:5.1f} {name}\n")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
