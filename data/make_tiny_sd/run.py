"""Settings of one call of `python3 -m data.make_tiny_sd.train`."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from data.make_tiny_sd import networks
from data.make_tiny_sd.captions import VIEW_SHARE
from data.make_tiny_sd.compile import autocast_for
from data.make_tiny_sd.renders import DataConfig
from dataset.cameras import step_generator
from training.distributed import SINGLE_PROCESS, Distributed


@dataclass(frozen=True)
class Run:
    """The settings of one call, derived from its options."""

    options: argparse.Namespace
    device: torch.device
    shape: networks.Shape
    data: DataConfig
    distributed: Distributed = SINGLE_PROCESS

    @property
    def work(self) -> Path:
        return self.options.work

    @property
    def autocast(self) -> Callable:
        return autocast_for(self.device)

    @property
    def seconds(self) -> float:
        return self.options.minutes * 60

    @property
    def view_share(self) -> float:
        """The share of captions that contain the view, which is 0 for a denoiser of several views."""
        return 0.0 if self.options.no_view_words or self.shape.views > 1 else VIEW_SHARE

    def generator(self, stream: int, step: int = 0) -> torch.Generator:
        """Return a generator on the device. stream: number of the stage. step: first step of this call."""
        seeded = step_generator(self.options.seed, self.distributed.rank, step, stream)
        return torch.Generator(self.device).manual_seed(seeded.initial_seed())
