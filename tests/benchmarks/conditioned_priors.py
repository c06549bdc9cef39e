"""Measure a guidance step (time, memory) with a plain prior, a four-view prior, a ControlNet and two priors.

    python3 tests/benchmarks/conditioned_priors.py [--json FILE] [--runs 20]

All priors have random weights and the sizes of Stable Diffusion 2.1-base (64² latents) or MVDream (4 views of
32²). A step consists of `Guidance.forward` with the VAE, and the gradient with respect to the images. Nothing
is rendered. Times are medians in ms. GB is the peak of the allocated memory, including weights and CUDA
graphs. `tokens` is the number of tokens in the self-attention of the first level, summed over all texts. Four
views of 32² have as many tokens as one view of 64².
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

# ruff: noqa: E402
import torch
from full_size_model import write_full_size_control_net, write_full_size_model

from render.camera import orbit
from sd.guidance import Guidance, GuidanceConfig
from sd.loading.control_folder import load_control_net
from sd.mixed_guidance import MixedGuidance
from sd.schedule import Phase, damped
from sd.stable_diffusion import StableDiffusion

PHASE = Phase("late", (0.02, 0.5), damped, "vae", rotate_normals=False)
DEVICE = torch.device("cuda")
SIDE = 512


def guidance_of(folder: Path, control_net: Path | None = None) -> Guidance:
    prior = StableDiffusion.from_pretrained(str(folder), DEVICE)
    if control_net is not None:
        prior.attach_control_net(load_control_net(control_net, prior.unet.dtype))
    guidance = Guidance(prior, GuidanceConfig(text="a pineapple"), "bad", DEVICE)
    prior.free_text_encoder()
    return guidance


def step_time(guidance: Guidance | MixedGuidance, views: int, runs: int) -> float:
    """Return the median time of a step in ms. The first steps, which capture CUDA graphs, are ignored."""
    cameras, generator = orbit(views, (SIDE, SIDE)), torch.Generator().manual_seed(0)
    image = torch.rand(views, SIDE, SIDE, 3, device=DEVICE).mul(2).sub(1).requires_grad_()
    control = torch.rand(views, SIDE, SIDE, 3, device=DEVICE)
    seconds = []
    for _ in range(runs + 5):
        sample = guidance.sample(cameras.view_index, PHASE, generator, cameras.world_to_clip)
        if guidance.control is not None:
            sample = guidance.with_control(sample, control)
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.autograd.grad(guidance(image, sample, PHASE)[0], image)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds[5:])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path, help="a file to write")
    options = parser.parse_args(arguments)
    gpu, rows = torch.cuda.get_device_name(), []
    sys.stdout.write(f"{gpu}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    with tempfile.TemporaryDirectory() as root:
        plain = write_full_size_model(Path(root) / "plain")
        views = write_full_size_model(Path(root) / "views", views=4)
        control_net = write_full_size_control_net(Path(root) / "control", plain / "unet")
        cases = [
            ("plain, 1 view of 64²", 1, 2 * 4096, lambda: guidance_of(plain)),
            ("plain, 4 views of 64²", 4, 8 * 4096, lambda: guidance_of(plain)),
            ("four views of 32²", 4, 2 * 4096, lambda: guidance_of(views)),
            ("four views of 32², two objects", 8, 4 * 4096, lambda: guidance_of(views)),
            ("plain with ControlNet, 1 view", 1, 2 * 4096, lambda: guidance_of(plain, control_net)),
            ("plain with ControlNet, 4 views", 4, 8 * 4096, lambda: guidance_of(plain, control_net)),
            (
                "four views + plain, 4 views",
                4,
                10 * 4096,
                lambda: MixedGuidance([guidance_of(views), guidance_of(plain)], (1.0, 1.0)),
            ),
        ]
        for name, count, tokens, make in cases:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            ms = step_time(make(), count, options.runs)
            rows.append({"what": name, "views": count, "tokens": tokens, "ms": round(ms, 2)})
            rows[-1]["gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            sys.stdout.write(f"{name:34} {ms:8.2f} ms {rows[-1]['gb']:7.2f} GB {tokens:7} tokens\n")
            sys.stdout.flush()
    if options.json:
        record = {"hardware": gpu, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
        options.json.write_text(json.dumps(record | {"rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
