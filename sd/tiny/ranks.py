"""Training on several GPUs of a machine: under torchrun each process holds a share of the data.

    torchrun --nproc_per_node=2 -m sd.tiny.train --out data/tiny-sd

Without a launcher there is one rank and nothing is sent.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranks:
    """This process among `world` of them."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every gradient becomes its mean over the ranks; they travel as one buffer."""
        if self.world == 1:
            return
        gradients = [_flat(parameter.grad) for parameter in parameters if parameter.grad is not None]
        buffer = torch.cat(gradients)
        dist.all_reduce(buffer)
        buffer /= self.world
        torch._foreach_copy_(gradients, buffer.split([len(gradient) for gradient in gradients]))

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks, on all of them."""
        if self.world == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world

    def alike(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether all ranks hold the same numbers, by two checksums."""
        if self.world == 1:
            return True
        flat = torch.cat([parameter.detach().double().reshape(-1) for parameter in parameters])
        mine = torch.stack([flat.sum(), flat.square().sum()])
        theirs = mine.clone()
        dist.broadcast(theirs, 0)
        logger.info("rank %d: the replicas %s", self.rank, "agree" if torch.equal(mine, theirs) else "differ")
        return torch.equal(mine, theirs)

    def agree(self, value: float, device: torch.device) -> float:
        """The first rank's value, on all ranks."""
        if self.world == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(number, 0)
        return number.item()

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def leave(self) -> None:
        """To be called at the end: a process that just ends takes the others' connections with it."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()


def _flat(tensor: Tensor) -> Tensor:
    """A view of all numbers in the order of memory: channels-last gradients need not be rearranged."""
    assert torch.ops.aten.is_non_overlapping_and_dense(tensor), "a gradient with gaps"
    return tensor.as_strided((tensor.numel(),), (1,))


ALONE = Ranks()


def join(device: torch.device) -> tuple[Ranks, torch.device]:
    """This process's ranks and device by the launcher's variables (RANK, WORLD_SIZE, LOCAL_RANK)."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return Ranks(), device
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), world), device
