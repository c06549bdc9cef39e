"""Measure the speed-up of each optimization of the denoiser, of the VAE encoder, and of their kernels.

    python3 tests/benchmarks/prior.py [--json FILE] [--model SD_MODEL] [--tiles]

Without --model, the prior has random weights and the architecture of Stable Diffusion 2.1-base. Times in ms
are medians over runs. The GPU is synchronised before and after each run. GB is the peak memory minus the
memory that was allocated before the run.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

# ruff: noqa: E402
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd.conditions import NO_CONDITIONS
from sd.kernels.cuda_graphs import InferenceCUDAGraph
from sd.kernels.fused_blocks import FrozenConv2d, WideHeadAttention, fuse_encoder_blocks
from sd.kernels.fused_denoiser import fuse_denoiser
from sd.kernels.reference import REFERENCE, Kernels
from sd.kernels.select import choose_kernels
from sd.loading.weights import Parts, load_parts
from sd.stable_diffusion import StableDiffusion, noise_of

NORMS = [(6, 128, 512, 512), (6, 256, 256, 256), (6, 512, 64, 64), (12, 320, 64, 64)]


class Bench:
    """Measure functions, and collect rows of (operation, variant, milliseconds, GB)."""

    def __init__(self, device: torch.device, runs: int):
        self.device, self.runs = device, runs
        self.rows: list[dict] = []

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(self, what: str, way: str, act: Callable[[], object]) -> None:
        for _ in range(3):
            act()
        self.wait()
        before = 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        seconds = []
        for _ in range(self.runs):
            begun = time.perf_counter()
            act()
            self.wait()
            seconds.append(time.perf_counter() - begun)
        row = {"what": what, "way": way, "ms": 1e3 * statistics.median(seconds)}
        if self.device.type == "cuda":
            row["gb"] = (torch.cuda.max_memory_allocated(self.device) - before) / 1e9
        self.rows.append(row)
        gb = f"{row['gb']:8.2f} GB" if "gb" in row else ""
        sys.stdout.write(f"{what:40} {way:44} {row['ms']:9.3f} ms {gb}\n")
        sys.stdout.flush()

    def measure_both(self, what: str, way: str, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        """Measure the forward pass alone, and the forward pass followed by the backward pass to x."""

        def forward() -> None:
            with torch.no_grad():
                function(x)

        def gradient() -> None:
            leaf = x.detach().requires_grad_()
            y = function(leaf)
            torch.autograd.grad(y, leaf, torch.ones_like(y))

        self.measure(f"{what} forward", way, forward)
        self.measure(f"{what} forward + backward", way, gradient)


def variants(
    module: nn.Module, speed_up: Callable, kernels: Kernels
) -> Iterator[tuple[str, nn.Module, object]]:
    """Yield variants (name, module, memory format).

    Each variant adds an optimization to the previous variant.
    """
    yield "diffusers", module, torch.contiguous_format
    module.to(memory_format=torch.channels_last)
    yield "+ channels last", module, torch.channels_last
    plain = copy.deepcopy(module)
    yield "+ our blocks on torch's kernels", speed_up(plain, REFERENCE) or plain, torch.channels_last
    del plain
    yield f"+ {kernels.name} kernels", speed_up(module, kernels) or module, torch.channels_last


def denoiser(bench: Bench, parts: Parts, kernels: Kernels, doubled: list[int]) -> None:
    unet, dtype = parts.unet, parts.unet.dtype
    size, channels = unet.config.sample_size, unet.config.in_channels

    def given(count: int, layout) -> tuple[Tensor, Tensor, Tensor]:
        noisy = torch.randn(count, channels, size, size, device=bench.device, dtype=dtype)
        text = torch.randn(count, 77, unet.config.cross_attention_dim, device=bench.device, dtype=dtype)
        timesteps = torch.randint(0, 1000, (count,), device=bench.device)
        return noisy.contiguous(memory_format=layout), timesteps, text

    for way, module, layout in variants(unet, fuse_denoiser, kernels):
        with torch.no_grad():
            for count in doubled:
                bench.measure(f"UNet 2B={count}", way, partial(noise_of, module, *given(count, layout)))
    with_graph = InferenceCUDAGraph(partial(noise_of, module))
    for count in doubled:
        bench.measure(f"UNet 2B={count}", "+ graph", partial(with_graph, *given(count, torch.channels_last)))


def encoder(bench: Bench, parts: Parts, kernels: Kernels, batches: list[int]) -> None:
    vae = parts.vae
    side = parts.unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    for way, module, layout in variants(vae.encoder, fuse_encoder_blocks, kernels):
        for count in batches:
            x = torch.rand(count, 3, side, side, device=bench.device, dtype=vae.dtype) * 2 - 1
            bench.measure_both(f"VAE B={count}", way, module, x.contiguous(memory_format=layout))


def whole(bench: Bench, parts: Parts, batches: list[int]) -> None:
    """Measure the prior as used in a run: encoding with its gradient, and the noise prediction."""
    prior = StableDiffusion(parts, bench.device)
    size, side = prior.latent_size, prior.image_size
    for count in batches:
        image = torch.rand(count, 3, side, side, device=bench.device)
        noise = torch.randn(count, prior.latent_channels, size, size, device=bench.device)
        bench.measure_both(
            f"prior.encode B={count}", "as in a run", partial(prior.encode, noise=noise), image
        )
        timesteps = torch.randint(0, 1000, (2 * count,), device=bench.device)
        text = torch.randn(2 * count, 77, parts.unet.config.cross_attention_dim, device=bench.device)
        times = torch.cat([timesteps[:count]] * 2)
        copies = NO_CONDITIONS.repeat(2)
        predict = partial(prior.predict_noise, torch.cat([noise, noise]), times, text, copies)
        bench.measure(f"prior.predict_noise 2B={2 * count}", "as in a run", predict)


def normalised(kernels: Kernels, weight: Tensor, groups: int, x: Tensor) -> Tensor:
    return kernels.group_norm_and_skip(x, weight, weight, groups, 1e-6)[0]


def norms(bench: Bench, kernels: Kernels, shapes: list[tuple], groups: int, dtype: torch.dtype) -> None:
    """Measure group normalisation with SiLU.

    The memory traffic is 3 times the size of x in the forward pass and 5 times in the backward pass. For
    comparison, a copy of x is measured, whose traffic is twice the size of x.
    """
    for shape in shapes:
        x = torch.randn(shape, device=bench.device, dtype=dtype)
        wide = x.contiguous(memory_format=torch.channels_last)
        weight = torch.ones(shape[1], device=bench.device, dtype=dtype)
        for way, taken, given in (
            ("torch, NCHW", REFERENCE, x),
            ("torch, NHWC", REFERENCE, wide),
            (f"{kernels.name}, NHWC", kernels, wide),
        ):
            norm = partial(normalised, taken, weight, groups)
            bench.measure_both(f"norm {shape}", way, norm, given)
        bench.measure(
            f"norm {shape} forward", "a copy of x: a third of the traffic x 2", partial(torch.clone, wide)
        )


def tiles(bench: Bench, shape: tuple, groups: int) -> None:
    """Measure Triton's group normalisation with several tile sizes."""
    from sd.kernels import group_norm_triton

    x = torch.randn(shape, device=bench.device, dtype=torch.float16)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.ones(shape[1], device=bench.device, dtype=x.dtype)

    def norm(x: Tensor) -> Tensor:
        return group_norm_triton.group_norm(x, weight, weight, groups, 1e-6)

    usual = group_norm_triton.TILE, group_norm_triton.WARPS, group_norm_triton.PROGRAMS
    for tile, warps in ((2048, 4), (4096, 4), (4096, 8), (8192, 8), (8192, 16)):
        for programs in (1024, 2048, 4096, 8192):
            group_norm_triton.TILE, group_norm_triton.WARPS, group_norm_triton.PROGRAMS = (
                tile,
                warps,
                programs,
            )
            bench.measure_both(f"norm {shape}", f"tile {tile}, {warps} warps, {programs} programs", norm, x)
    group_norm_triton.TILE, group_norm_triton.WARPS, group_norm_triton.PROGRAMS = usual


def others(bench: Bench, kernels: Kernels, batch: int, tokens: int, width: int, side: int) -> None:
    """Measure the VAE's attention, its first convolution, GEGLU, and the residual sum of a block."""
    dtype = torch.float16 if bench.device.type == "cuda" else torch.float32
    draw = partial(torch.randn, device=bench.device, dtype=dtype)
    x, scale = draw(batch, tokens, width), width**-0.5

    def usual(x: Tensor) -> Tensor:
        part = x[:, None]
        return F.scaled_dot_product_attention(part, part, part)

    name = f"attention {batch} x {tokens} x {width}"
    bench.measure_both(name, "torch's choice", usual, x)
    if bench.device.type == "cuda":
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            bench.measure_both(name, "torch's math kernel", usual, x)
    bench.measure_both(name, "ours", lambda x: WideHeadAttention.apply(x, x, x, scale), x)

    first = nn.Conv2d(3, 128, 3, padding=1).to(bench.device, dtype, memory_format=torch.channels_last)
    image = draw(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    first.requires_grad_(False)
    bench.measure_both("first convolution", "torch's", first, image)
    bench.measure_both("first convolution", "ours", FrozenConv2d(first, kernels), image)

    gated, weight = draw(2 * batch, tokens, 320), draw(2 * 1280, 320)
    for taken in (REFERENCE, kernels):
        with torch.no_grad():
            bench.measure(
                "GEGLU of 1280", taken.name, partial(taken.gated_linear, gated, weight, weight[:, 0].clone())
            )
    wide = draw(batch, 128, side, side).contiguous(memory_format=torch.channels_last)
    bias = draw(128)
    for taken in (REFERENCE, kernels):
        with torch.no_grad():
            bench.measure("biased sum of 128", taken.name, partial(taken.biased_sum, wide, wide, bias))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", help="an sd_model (default: random weights of full size)")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--changes", action="store_true", help="only each change of the prior, on and off")
    parser.add_argument("--tiles", action="store_true", help="the norm with other sizes of a program too")
    parser.add_argument("--json", type=Path, help="a file to write")
    options = parser.parse_args(arguments)
    device = torch.device("cuda")
    bench, kernels = Bench(device, options.runs), choose_kernels(device)
    gpu = torch.cuda.get_device_name()
    sys.stdout.write(
        f"{gpu}, torch {torch.__version__}, {kernels.name} kernels, {time.strftime('%Y-%m-%d')}\n"
    )
    if options.tiles:
        for shape in NORMS[:2]:
            tiles(bench, shape, 32)
    if not options.changes:
        norms(bench, kernels, NORMS, 32, torch.float16)
        others(bench, kernels, 6, 4096, 512, 512)
    with tempfile.TemporaryDirectory() as folder:
        if not options.model:
            from full_size_model import write_full_size_model

            options.model = str(write_full_size_model(Path(folder) / "model"))
        run = partial(load_parts, options.model, device)
        everything = (
            (denoiser, kernels, [12, 8]),
            (encoder, kernels, [6, 4, 3]),
            (whole, [6, 4, 1]),
        )
        from prior_changes import denoiser_changes, encoder_changes, gated_linears

        changes = ((denoiser_changes, kernels, 6), (encoder_changes, kernels, 6), (whole, [6, 4]))
        for act, *sizes in changes if options.changes else everything:
            parts = run()
            for part in (parts.unet, parts.vae, parts.text_encoder):
                part.requires_grad_(False).eval().to(device)
            act(bench, parts, *sizes)
            del parts, part
            torch.cuda.empty_cache()
    if options.changes:
        gated_linears(bench, 12)
    if options.json:
        record = {"hardware": gpu, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
        options.json.write_text(json.dumps(record | {"rows": bench.rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
