"""Compile the denoiser's training step with torch.compile, in advance in a child process.

Compilation takes about a minute, as long as rendering and VAE training together. While these stages run, a
child process compiles the denoiser for the tensor shapes of the training. This fills inductor's cache on
disk, which the training process then uses. If compilation fails, training runs in eager mode.
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
    """Return a function that creates autocast contexts: bf16 on CUDA.

    Autocast is disabled on CPUs, where bf16 is slower.
    """
    return partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def predict(
    unet: nn.Module, noisy: Tensor, timesteps: Tensor, text: Tensor, camera: Tensor | None = None
) -> Tensor:
    """Return the predicted noise in the precision of the network.

    camera [B, 16]: the cameras, if the denoiser processes several views together.
    """
    named = {} if camera is None else {"class_labels": camera}
    return unet(noisy, timesteps, encoder_hidden_states=text, return_dict=False, **named)[0]


def example(shape: Shape, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return example arguments of `predict` with the shapes, strides and dtypes that training uses."""
    size = (batch, LATENT_CHANNELS, shape.latent_size, shape.latent_size)
    noisy = torch.randn(size, device=device).contiguous(memory_format=torch.channels_last)
    timesteps = torch.randint(1000, (batch,), device=device)
    text = torch.randn(batch, LENGTH, shape.text_width, device=device, requires_grad=True)
    return noisy, timesteps, text


def start_warm_up(shape: Shape, batch: int) -> subprocess.Popen:
    """Start a child process that compiles the denoiser and exits with status 0 if compilation works."""
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
    """Return the compiled network, or the network itself if compilation fails or changes the result."""
    arguments = example(shape, batch, device)
    try:
        compiled = _compile(unet)
        with autocast_for(device)():
            output = predict(compiled, *arguments).float()
            output.square().mean().backward()
            expected = predict(unet, *arguments).float()
    except Exception as error:  # inductor raises exceptions of any type; eager execution always works
        logger.warning("torch.compile failed, using eager execution: %s", str(error).splitlines()[0])
        return unet
    finally:
        unet.zero_grad(set_to_none=True)
    difference = ((output - expected).norm() / expected.norm()).item()
    if not difference < 0.05:
        logger.warning(
            "torch.compile changes the result (relative difference %.3f), using eager execution", difference
        )
        return unet
    logger.info("torch.compile: on (relative difference to eager %.4f)", difference)
    return compiled


def _warm_up(shape: Shape, batch: int) -> None:
    device = torch.device("cuda")
    unet = build_unet(shape).to(device, memory_format=torch.channels_last).train()
    compiled = _compile(unet)
    for _ in range(3):
        # Do not keep the gradients: the CUDA graph reuses their memory in the next iteration.
        unet.zero_grad(set_to_none=True)
        with autocast_for(device)():
            output = predict(compiled, *example(shape, batch, device)).float()
            output.square().mean().backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in request["shape"].items()
    }
    _warm_up(Shape(**fields), request["batch"])
