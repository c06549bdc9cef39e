"""Measure a training step on a rough surface without the prior: the total time, and that of each GPU kernel.

    python3 tests/benchmarks/rough.py [--grid 256] [--batch 4] [--faces 1000000] [--json FILE]
    python3 tests/benchmarks/rough.py --code OTHER_CHECKOUT --save STATE.pt
    python3 tests/benchmarks/rough.py --load STATE.pt

The surface is the zero level set of a field: the signed distance of an ellipsoid plus noise. The strength of
the noise is chosen such that the surface has about --faces faces. A step evaluates the network, replaces the
distances that it returns by the field, renders the normal image, computes the gradients of a weighted sum of
the pixels and runs the optimizer with a learning rate of 0. The total is the median over steps between two
CUDA events.

--code measures the code of another checkout. --save writes the surface, the image and the gradients of one
step. --load uses the saved surface and reports the differences from the saved image and gradients, which are
due to rounding.
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
from render.shade.light import EnvironmentLight

AXES = (0.56, 0.74, 0.56)
# Some kernels of these modules have equal names, so the profile also shows the name of the module.
KERNEL_MODULES = (
    "render.encoding.hash_grid_triton",
    "render.kernels.gbuffer_triton",
    "render.kernels.normal_image_triton",
    "render.kernels.vertex_normals_triton",
    "geometry.kernels.sdf_network_triton",
)


def name_kernels() -> None:
    """Add the name of the module to the name of each kernel, for the profile."""
    from triton.runtime.jit import JITFunction

    for name in KERNEL_MODULES:
        module = importlib.import_module(name)
        for attribute, kernel in vars(module).items():
            if isinstance(kernel, JITFunction) and attribute.startswith("_"):
                short = name.rsplit(".", 1)[-1].removesuffix("_triton")
                kernel._repr = lambda _, full=f"{short}{attribute}": full


def build_surface(config: GeometryConfig, device: torch.device) -> DMTet:
    """Return a surface whose network has random weights and a small output."""
    return DMTet(config, step_generator(0, 0, 0)).to(device)


def set_field(surface: DMTet, field: torch.Tensor) -> None:
    """Replace the distances [V] of the network by the field.

    The network is still evaluated, so that its time is measured.
    """
    distances = type(surface.network).distances
    surface.network.distances = lambda points: 0 * distances(surface.network, points) + field


@torch.no_grad()
def find_field(surface: DMTet, faces: int) -> torch.Tensor:
    """Return the distances [V] to an ellipsoid, with noise that gives about the given number of faces."""
    scale = torch.tensor(AXES, device=surface.v_pos.device)
    smooth = ((surface.v_pos / scale).norm(dim=-1) - 1) * min(AXES)
    noise = torch.randn_like(smooth)
    low, high = 0.0, 0.5 if faces else 0.0
    for _ in range(10 if faces else 0):
        middle = (low + high) / 2
        set_field(surface, smooth + middle * noise)
        if len(surface.mesh().faces) < faces:
            low = middle
        else:
            high = middle
    return smooth + high * noise


class RoughStep:
    """A step of geometry modeling whose loss is a weighted sum of the pixels."""

    def __init__(self, surface: DMTet, batch: int, size: int):
        device = surface.v_pos.device
        self.surface = surface
        # Only previews use the light, so its values do not matter here.
        light = EnvironmentLight(torch.ones(6, 2, 2, 3))
        self.scene = GeometryScene(surface, choose_rasteriser(device), light, False)
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
    parser.add_argument("--log2_hashmap_size", type=int, default=19)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--faces", type=int, default=1_000_000, help="0: no noise")
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
    size = options.log2_hashmap_size
    config = GeometryConfig(dmtet_grid=options.grid, mesh_scale=2.4, hash_log2_hashmap_size=size)
    surface = build_surface(config, device)
    if expected:
        surface.load_state_dict(expected["weights"])
    field = expected["field"] if expected else find_field(surface, options.faces)
    set_field(surface, field)
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
    state = {**state_of(step), "field": field}
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
