"""Measure the fused prior with one optimization at a time switched off (prior.py --changes).

The results are times and errors. A timed call replays a CUDA graph. The error is the Euclidean norm of the
difference from the result of diffusers' modules in float32, divided by the norm of that result. The last rows
list the GPU kernels with the largest times.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from sd.kernels import fused_blocks, fused_denoiser, group_norm_triton
from sd.kernels.cuda_graphs import DifferentiableCUDAGraph, InferenceCUDAGraph
from sd.kernels.reference import REFERENCE, Kernels
from sd.loading.weights import Parts
from sd.stable_diffusion import noise_of

LISTED_KERNELS, GEGLU_CALLS = 45, 16
Tensors = tuple[Tensor, ...]


@contextmanager
def patched(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.float() - exact.float()).norm() / exact.float().norm()).item()


def exact_float32() -> AbstractContextManager:
    """Return a context without TF32 in convolutions."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def concatenated(block: nn.Module, x: Tensor, other: Tensor, shift: Tensor) -> Tensor:
    return block(torch.cat([x, other], dim=1), shift=shift)


def never(module: nn.Module) -> bool:
    return False


def row(bench, what: str, way: str, act: Callable[[], object], **numbers: float) -> None:
    bench.measure(what, way, act)
    bench.rows[-1] |= numbers
    print("".join(f"{name} {value:.3g} " for name, value in numbers.items()), flush=True)


def denoiser_changes(bench, parts: Parts, kernels: Kernels, batch: int) -> None:
    """Measure the denoiser for two texts per latent."""
    original, dtype = parts.unet, parts.unet.dtype
    size, channels = original.config.sample_size, original.config.in_channels
    noisy = torch.randn(batch, channels, size, size, device=bench.device, dtype=dtype)
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    times = torch.randint(20, 980, (batch,), device=bench.device)
    text = torch.randn(2 * batch, 77, original.config.cross_attention_dim, device=bench.device, dtype=dtype)
    shared, repeated = (noisy, times, text), (torch.cat([noisy] * 2), torch.cat([times] * 2), text)
    with torch.no_grad(), exact_float32():
        exact = noise_of(copy.deepcopy(original).float(), noisy.float(), times, text.float())
        usual = error(noise_of(original, *shared), exact)
        original.to(memory_format=torch.channels_last)

    def measure(way: str, used: Kernels, given: Tensors, joint: bool = True) -> None:
        unet = copy.deepcopy(original)
        fused = fused_denoiser.fuse_denoiser(unet, used)
        graph = InferenceCUDAGraph(partial(noise_of, fused if joint else unet))
        begun = time.perf_counter()
        numbers = {"error": error(graph(*given), exact), "usual_error": usual}
        numbers["first_call_s"] = time.perf_counter() - begun
        row(bench, f"UNet 2B={2 * batch}, graph", way, partial(graph, *given), **numbers)
        if way == "all changes":
            list_kernels(bench, partial(graph, *given), "UNet")

    measure("all changes", kernels, shared)
    measure("all changes, again", kernels, shared)
    measure("without shared latents", kernels, repeated)
    measure("without diffusers' forward pass replaced", kernels, repeated, joint=False)
    measure("without GEGLU in one kernel", replace(kernels, gated_linear=REFERENCE.gated_linear), shared)
    with patched(fused_blocks.FusedResnetBlock, "forward_pair", concatenated):
        measure("with concatenated skip connections", kernels, shared)
    with patched(group_norm_triton, "GROUP_ELEMENTS", 0):
        measure("without the norm in one kernel", kernels, shared)
    with patched(fused_denoiser, "is_supported_upsampler", never):
        measure("without 2 x 2 convolutions for upsampling", kernels, shared)


def encoder_changes(bench, parts: Parts, kernels: Kernels, batch: int) -> None:
    """Measure the VAE's encoder, forward and backward."""
    original = parts.vae.encoder
    side = parts.unet.config.sample_size * 2 ** (len(parts.vae.config.block_out_channels) - 1)
    x = torch.rand(batch, 3, side, side, device=bench.device, dtype=parts.vae.dtype) * 2 - 1
    x = x.contiguous(memory_format=torch.channels_last)

    def both(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensors:
        leaf = x.detach().requires_grad_()
        y = function(leaf)
        grad_output = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        return y.detach(), torch.autograd.grad(y, leaf, grad_output.to(y))[0]

    one = x[:1]
    with exact_float32():
        exact = both(copy.deepcopy(original).float(), one.float())
    usual = [error(*pair) for pair in zip(both(original, one), exact, strict=True)]
    original.to(memory_format=torch.channels_last)

    def measure(way: str, used: Kernels) -> None:
        encoder = copy.deepcopy(original)
        fused_blocks.fuse_encoder_blocks(encoder, used)
        found = [error(*pair) for pair in zip(both(encoder, one), exact, strict=True)]
        graph = DifferentiableCUDAGraph(encoder, x.numel())
        row(
            bench,
            f"VAE B={batch}, forward + backward, graph",
            way,
            lambda: both(graph, x),
            value_error=found[0],
            gradient_error=found[1],
            usual_value_error=usual[0],
            usual_gradient_error=usual[1],
        )
        if way == "all changes":
            list_kernels(bench, lambda: both(graph, x), "VAE")

    measure("all changes", kernels)
    measure("all changes, again", kernels)
    measure("without gradients added in the norm", replace(kernels, group_norm_and_skip=separate_norm))
    for tile, warps, programs in ((2048, 4, 2048), (2048, 4, 4096), (4096, 8, 2048), (4096, 4, 4096)):
        with (
            patched(group_norm_triton, "TILE", tile),
            patched(group_norm_triton, "WARPS", warps),
            patched(group_norm_triton, "PROGRAMS", programs),
        ):
            measure(f"norm: tile {tile}, {warps} warps, {programs} programs", kernels)
    for stages in ((1, 1), (3, 1), (2, 2), (3, 3)):
        with (
            patched(group_norm_triton, "SUM_STAGES", stages[0]),
            patched(group_norm_triton, "OUTPUT_STAGES", stages[1]),
        ):
            measure(f"norm: {stages[0]} stages for sums, {stages[1]} for outputs", kernels)
    for tokens, samples in ((0, 1), (4096, 1), (4096, 3), (4096, 6), (0, 2)):
        with (
            patched(fused_blocks, "STORED_TOKENS", tokens),
            patched(fused_blocks, "JOINT_SAMPLES", samples),
        ):
            measure(f"attention: {samples} samples, stored up to {tokens} tokens", kernels)
    with patched(fused_blocks, "MAX_IMAGE_VALUES", 0):
        measure("without the kernel for the first convolution", kernels)
    with patched(fused_blocks, "TURN_WEIGHTS", False):
        measure("without turned weights in the backward pass", kernels)


def separate_norm(x: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return group_norm_triton.group_norm(x, *others), x


def gated_linears(bench, samples: int) -> None:
    """Measure the kernel of GEGLU with several tiles, for the sizes of the denoiser."""
    from sd.kernels import gated_linear_triton

    for tokens, channels in ((4096, 320), (1024, 640), (256, 1280), (64, 1280)):
        x = torch.randn(samples, tokens, channels, device=bench.device, dtype=torch.float16)
        weight = torch.randn(8 * channels, channels, device=bench.device, dtype=torch.float16)
        weight, bias = weight / channels**0.5, weight[:, 0].contiguous()
        for tile, warps, stages in (
            ((128, 128, 64), 4, 3),
            ((128, 128, 64), 4, 2),
            ((128, 128, 64), 8, 3),
            ((128, 256, 64), 8, 3),
            ((256, 128, 64), 8, 3),
        ):
            with (
                patched(gated_linear_triton, "TILE", tile),
                patched(gated_linear_triton, "WARPS", warps),
                patched(gated_linear_triton, "STAGES", stages),
            ):

                def act(*given: Tensor) -> None:
                    for _ in range(GEGLU_CALLS):
                        gated_linear_triton.gated_linear(*given)

                name = f"{GEGLU_CALLS} x GEGLU {samples} x {tokens} x {channels}"
                way = f"tile {tile}, {warps} warps, {stages} stages"
                bench.measure(name, way, partial(act, x, weight, bias))


def list_kernels(bench, act: Callable[[], object], what: str) -> None:
    """Add a row for each of the GPU kernels that take the most time in one call of `act`."""
    if bench.device.type != "cuda":
        return
    act()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        act()
        bench.wait()
    events = sorted(profile.key_averages(), key=lambda event: -event.device_time_total)
    total = sum(event.device_time_total for event in events) / 1e3
    print(f"{what}: {total:.2f} ms in {sum(event.count for event in events)} kernels", flush=True)
    for event in events[:LISTED_KERNELS]:
        value, name = event.device_time_total / 1e3, f"{event.count} x {event.key[:110]}"
        bench.rows.append({"what": f"{what} kernels", "way": name, "ms": value})
        print(f"{value:8.3f} ms {name}", flush=True)
