"""The denoiser's training step through torch.compile, warmed up in a second process.

Compiling takes a minute, as long as the data and the VAE need anyway: a child process compiles the same
network for the same shapes meanwhile and leaves the kernels in inductor's cache on disk. If it fails,
training stays eager.
"""

import json
import logging
import subprocess
import sys
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor, nn

from data.make_tiny_sd.networks import LATENT_CHANNELS, Shape, build_unet
from data.make_tiny_sd.tokenizer import LENGTH

logger = logging.getLogger(__name__)


def autocast_for(device: torch.device):
    """A maker of contexts: bf16 on CUDA, nothing elsewhere (bf16 is slower than float32 on CPUs)."""
    return partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def predict(unet: nn.Module, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """The predicted noise, as the network's precision has it."""
    return unet(noisy, timesteps, encoder_hidden_states=text, return_dict=False)[0]


def example(shape: Shape, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments for `predict` of the shapes, strides and types that training uses."""
    size = (batch, LATENT_CHANNELS, shape.latent_size, shape.latent_size)
    noisy = torch.randn(size, device=device).contiguous(memory_format=torch.channels_last)
    timesteps = torch.randint(1000, (batch,), device=device)
    text = torch.randn(batch, LENGTH, shape.text_width, device=device, requires_grad=True)
    return noisy, timesteps, text


def start_warm_up(shape: Shape, batch: int) -> subprocess.Popen:
    """Compile in a child process; its exit status 0 says that compiling works here."""
    command = [
        sys.executable,
        "-m",
        "data.make_tiny_sd.compile",
        json.dumps({"shape": asdict(shape), "batch": batch}),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _compile(unet: nn.Module) -> nn.Module:
    return torch.compile(unet, dynamic=False, mode="reduce-overhead")


def compile_unet(unet: nn.Module, shape: Shape, batch: int, device: torch.device) -> nn.Module:
    """The compiled network, or the network itself if compiling fails or gives another answer."""
    arguments = example(shape, batch, device)
    try:
        compiled = _compile(unet)
        with autocast_for(device)():
            answer = predict(compiled, *arguments).float()
            answer.square().mean().backward()
            expected = predict(unet, *arguments).float()
    except Exception as error:  # inductor raises whatever its parts raise; eager always works
        logger.warning("torch.compile failed, going on without: %s", str(error).splitlines()[0])
        return unet
    finally:
        unet.zero_grad(set_to_none=True)
    difference = ((answer - expected).norm() / expected.norm()).item()
    if not difference < 0.05:
        logger.warning("torch.compile gives another answer (%.3f relative), going on without", difference)
        return unet
    logger.info("torch.compile: on (relative difference to eager %.4f)", difference)
    return compiled


def _warm_up(shape: Shape, batch: int) -> None:
    device = torch.device("cuda")
    unet = build_unet(shape).to(device, memory_format=torch.channels_last).train()
    compiled = _compile(unet)
    for _ in range(3):
        # Gradients of the last turn live in the graph's memory, which the next turn overwrites.
        unet.zero_grad(set_to_none=True)
        with autocast_for(device)():
            answer = predict(compiled, *example(shape, batch, device)).float()
            answer.square().mean().backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in request["shape"].items()
    }
    _warm_up(Shape(**fields), request["batch"])
