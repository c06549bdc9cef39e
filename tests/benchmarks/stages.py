"""Measure each stage of a training step, and the time of the prior alone, which is a lower bound of a step.

    python3 tests/benchmarks/stages.py --config configs/pineapple_geometry_single_gpu.json --model full-size
    python3 tests/benchmarks/stages.py --config configs/pineapple_demo_geometry.json --steps 10

--model full-size creates random weights with the architecture of Stable Diffusion 2.1-base and needs a GPU.
Any other value is used as sd_model. Other options are config keys, for example --dmtet_grid 256 --batch 4.
The total is the median over whole steps. The stages are timed in separate steps. The GPU is synchronised
before and after each stage, so the sum of the stages is slightly larger than the total. The time of a nested
stage is not counted in the outer stage. The start shape is first fitted in --fit steps and then kept fixed by
a learning rate of 0, so the measured surface is smooth. With --torn, the surface is optimized instead. The
gradients of random weights make the surface irregular, and the number of faces becomes about ten times as
large. Appearance is optimized on a sphere of --faces triangles.
"""

import argparse
import gc
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import pairwise
from pathlib import Path

# This file is run as a script, so the repository root and tests/ are added to the import path.
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

# ruff: noqa: E402
import torch

import geometry.dmtet
import render.scene
import training.prefetch
import training.tasks
from configs.cli import load_configs
from configs.schema import Config
from geometry.dmtet import DMTet
from geometry.sdf_network import SdfNetwork
from render.encoding.hash_grid import PrecomputedEncoding
from render.mesh import Mesh, make_mesh
from render.mesh_io.write_obj import write_obj
from render.shade.light import EnvironmentLight
from render.shade.material import MaterialField
from sd.conditions import NO_CONDITIONS
from sd.guidance import Guidance
from sd.schedule import Phase, Schedule
from sd.stable_diffusion import StableDiffusion
from training import loop as training_loop
from training.distributed import SINGLE_PROCESS
from training.loop import TrainState
from training.prefetch import make_prefetcher
from training.tasks import build_task

WARM_UP = 4


class Stopwatch:
    """Measure the seconds of each stage, excluding nested stages."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._inner: list[float] = []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, stage: str, function: Callable) -> Callable:
        @wraps(function)
        def timed(*arguments, **options):
            begun = self.now()
            self._inner.append(0.0)
            result = function(*arguments, **options)
            whole = self.now() - begun
            self.seconds[stage].append(whole - self._inner.pop())
            if self._inner:
                self._inner[-1] += whole
            return result

        return timed

    @contextmanager
    def watching(self, places: list[tuple[str, object, str]]) -> Iterator[None]:
        """Time every given function within the `with` block. places: (stage, owner, attribute name)."""
        before = [(owner, name, getattr(owner, name)) for _, owner, name in places]
        for stage, owner, name in places:
            setattr(owner, name, self.wrap(stage, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, function in before:
                setattr(owner, name, function)


def stages(rasteriser: object, optimizer: torch.optim.Optimizer) -> list[tuple[str, object, str]]:
    kind = type(rasteriser)
    return [
        ("draws", training.prefetch, "sample_micro_batch"),
        ("field", SdfNetwork, "raw_output"),
        ("field", SdfNetwork, "distances"),
        ("encoding", PrecomputedEncoding, "__call__"),
        ("marching", geometry.dmtet, "compact_topology"),
        ("marching", geometry.dmtet, "padded_topology"),
        ("marching", DMTet, "crossings"),
        ("mesh normals", geometry.dmtet, "make_mesh"),
        ("rasterize", kind, "rasterize"),
        ("interpolate", kind, "interpolate"),
        ("antialias", kind, "antialias"),
        ("surface points", render.scene, "covered_points"),
        ("normal image", render.scene, "normal_image"),
        ("material", MaterialField, "forward"),
        ("light", EnvironmentLight, "prefiltered"),
        ("shade", render.scene, "shade"),
        ("VAE encode", StableDiffusion, "encode"),
        ("UNet", StableDiffusion, "predict_noise"),
        ("VSD's denoiser", StableDiffusion, "predict_lora_noise"),
        ("surface terms", training.tasks, "surface_loss"),
        ("backward", torch.Tensor, "backward"),
        ("optimiser", optimizer, "step"),
    ]


def sphere(faces: int) -> Mesh:
    """Return a sphere of about `faces` triangles, with open poles and latitude-longitude UVs."""
    columns = max(round(faces**0.5), 8)
    rows = max(round(faces / (2 * columns)), 4)
    u, v = torch.meshgrid(torch.linspace(0, 1, columns + 1), torch.linspace(0, 1, rows + 1), indexing="xy")
    azimuth, polar = 2 * torch.pi * u, 0.05 + (torch.pi - 0.1) * v
    position = 0.7 * torch.stack(
        [polar.sin() * azimuth.sin(), polar.cos(), polar.sin() * azimuth.cos()], dim=-1
    )
    number = torch.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    a, b, c, d = number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]
    corners = torch.stack([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)])
    triangles = corners.reshape(-1, 3).int()
    mesh = make_mesh(position.reshape(-1, 3), triangles)
    uv = torch.stack([u, v], dim=-1).reshape(-1, 2) * 0.96 + 0.02
    return Mesh(mesh.v_pos, mesh.faces, mesh.v_nrm, uv=uv, uv_faces=triangles)


class SteppedRun:
    """A run (task, guidance and state) that is advanced one step at a time."""

    def __init__(self, config: Config, prior: StableDiffusion | None = None):
        self.config = config
        self.task, self.optimizer, self.device = build_task(config)
        if prior is None:
            settings = config.guidance
            prior = StableDiffusion.from_pretrained(
                settings.sd_model,
                self.device,
                cpu_bfloat16=settings.cpu_bfloat16,
                keep_trainable=settings.score == "vsd",
            )
        self.guidance = Guidance(prior, config.guidance, config.run.traits.negative_prompt, self.device)
        self.state = TrainState(0, self.task.schedule, self.optimizer, None)

    def enter(self, phase: Phase) -> None:
        """Set the phase of all following steps."""
        schedule = Schedule(((sys.maxsize, phase),))
        prefetcher = make_prefetcher(self.config, self.guidance, schedule, SINGLE_PROCESS)
        self.state = TrainState(self.state.step, schedule, self.optimizer, prefetcher)

    def step(self) -> None:
        """Run one step. As in a real run, the host waits for the GPU only when it reads the loss."""
        self.state.step += 1
        if self.state.phase.fit:
            training_loop.fit_step(self.state, self.config, self.task, SINGLE_PROCESS)
        else:
            # train_step is looked up in its module at each call, because the stopwatch replaces this
            # attribute.
            training_loop.train_step(self.state, self.config, self.task, self.guidance, SINGLE_PROCESS)

    def hold(self) -> None:
        """Set the learning rates to 0. The optimizer still runs, but the parameters stay constant."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0

    def median(self, act: Callable[[], object], steps: int) -> float:
        """Return the median duration of a call of `act` in ms, after a warm-up.

        The durations are measured between the ends of consecutive calls. As in a real run, there is no
        synchronisation between calls, so the host prepares a call while the GPU executes the previous one.
        """
        ends = []
        for _ in range(WARM_UP + steps + 1):
            act()
            ends.append(time.perf_counter())
        return 1e3 * statistics.median(after - before for before, after in pairwise(ends[WARM_UP:]))

    def total(self, steps: int) -> dict:
        """Return the time of a whole step in ms, and the peak of the GPU memory that torch reserved in GB.

        The memory includes CUDA graphs and the data that is prefetched for the next step.
        """
        if self.device.type == "cuda":
            # Objects of earlier measurements are freed first, because reference cycles can keep them in
            # memory.
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        total = self.median(self.step, steps)
        memory = torch.cuda.max_memory_reserved() / 1e9 if self.device.type == "cuda" else None
        return {"total_ms": total, "peak_gb": memory}

    def measure(self, steps: int) -> dict:
        """Return total time, memory, time of each stage, and lower bound for the current phase."""
        total = self.total(steps)
        watch = Stopwatch(self.device)
        with watch.watching(stages(self.task.scene.rasteriser, self.optimizer)):
            for _ in range(steps):
                self.step()
        found = {name: 1e3 * sum(seconds) / steps for name, seconds in watch.seconds.items()}
        return {**total, "stages_ms": found, "floor_ms": self.floor(steps)}

    def floor(self, steps: int) -> float:
        """Return the time in ms that the prior alone needs for the batch of one step.

        The forward pass of the denoiser is timed. If the phase uses the VAE encoder, its forward and backward
        passes are also timed.
        """
        phase = self.state.phase
        prior, batch = self.guidance.prior, self.config.run.batch
        size, side = prior.latent_size, prior.image_size
        noise = torch.randn(batch, prior.latent_channels, size, size, device=self.device)
        noisy = torch.cat([noise] * 2)
        timesteps = torch.cat([torch.randint(0, 1000, (batch,), device=self.device)] * 2)
        text = self.guidance.text[:1].expand(2 * batch, -1, -1)
        copies = NO_CONDITIONS.repeat(2)
        image = torch.rand(batch, 3, side, side, device=self.device, requires_grad=True)

        def alone() -> None:
            if phase.latents_from == "vae":
                image.grad = None
                prior.encode(image, noise).sum().backward()
            # item() waits for the GPU, as a training step does when it reads the loss.
            prior.predict_noise(noisy, timesteps, text, copies)[0, 0, 0, 0].item()

        return self.median(alone, steps)


def benchmark(config: Config, steps: int, fit: int, torn: bool = False) -> dict:
    return phases_of(SteppedRun(config), fit, torn, lambda run: run.measure(steps))


def phases_of(run: SteppedRun, fit: int, torn: bool, measure: Callable[[SteppedRun], dict]) -> dict:
    """Fit the start shape, then measure each phase."""
    found = {}
    phases = [phase for _, phase in run.task.schedule.phases]
    for phase in phases:
        if phase.fit:
            run.enter(phase)
            found["fit"] = {"total_ms": run.median(run.step, fit)}
    if not torn:
        run.hold()
    for phase in phases:
        if not phase.fit:
            run.enter(phase)
            found[phase.name] = measure(run)
    surface = getattr(run.task.scene, "surface", None)
    mesh = surface.mesh() if surface is not None else run.task.scene.mesh
    return {"faces": len(mesh.faces), "rasteriser": run.task.scene.rasteriser.name, "phases": found}


def table(record: dict) -> str:
    """Return a Markdown table with one row per stage and one column per phase."""
    phases = {name: values for name, values in record["phases"].items() if "stages_ms" in values}
    names = list(dict.fromkeys(stage for values in phases.values() for stage in values["stages_ms"]))
    lines = ["| ms a step | " + " | ".join(phases) + " |", "| --- |" + " --- |" * len(phases)]

    def row(title: str, values: list[float | None], digits: int = 2) -> None:
        cells = ["" if value is None else f"{value:.{digits}f}" for value in values]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")

    for stage in names:
        row(stage, [values["stages_ms"].get(stage) for values in phases.values()])
    row("**whole step**", [values["total_ms"] for values in phases.values()])
    row("floor: the prior alone", [values["floor_ms"] for values in phases.values()])
    row("beyond the floor", [values["total_ms"] - values["floor_ms"] for values in phases.values()])
    row("peak memory, GB", [values["peak_gb"] for values in phases.values()], 1)
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--model", help="full-size, or an sd_model (default: the config's)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--fit", type=int, default=400, help="steps of the start shape's fit")
    parser.add_argument("--torn", action="store_true", help="let the surface follow the gradients")
    parser.add_argument("--faces", type=int, default=130_000, help="of the sphere that is painted")
    parser.add_argument("--json", type=Path, help="a file to write")
    options, rest = parser.parse_known_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config", options.config, "--out_dir", f"{folder}/out", *rest]
        if options.model == "full-size":
            from full_size_model import write_full_size_model

            words += ["--sd_model", str(write_full_size_model(Path(folder) / "model"))]
        elif options.model:
            words += ["--sd_model", options.model]
        if json.loads(Path(options.config).read_text())["mode"] == "appearance_modeling":
            words += ["--base_mesh", str(write_obj(Path(folder) / "mesh", sphere(options.faces)))]
        config = load_configs(words)[0]
        record = benchmark(config, options.steps, options.fit, options.torn)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    record |= {
        "config": options.config,
        "options": rest,
        "hardware": gpu or platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "batch": config.run.batch,
        "grid": config.geometry.dmtet_grid,
    }
    sys.stdout.write(
        f"{options.config} {' '.join(rest)}: {record['faces']} faces, {record['rasteriser']}, "
        f"{record['hardware']}, torch {record['torch']}, {record['date']}\n\n{table(record)}\n"
    )
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
