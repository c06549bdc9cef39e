"""Several processes of one launcher (torchrun) share the cells of a fleet; each knows only its own number."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from configs.errors import ConfigError
from configs.fleet.cells import Cell

# Longer than the longest fleet; the store's clock counts milliseconds in 32 bits.
PATIENCE = timedelta(days=14)


@dataclass(frozen=True)
class Rank:
    """This process among `world`, and among the `local_world` of its machine."""

    number: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    def share(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells of this rank. By their place among all, so that ranks need not agree on what is done."""
        return list(cells[self.number :: self.world])

    def gpus(self, visible: Sequence[str]) -> list[str]:
        """This rank's one of the machine's GPUs; all of them where there is no launcher."""
        if self.world == 1:
            return list(visible)
        return [visible[self.local % len(visible)]] if visible else []


def launched(environment: Mapping[str, str]) -> Rank:
    """What the launcher's variables tell; one rank of one where there are none.

    Raises:
        ConfigError: they are no numbers, or contradict each other.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Rank()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    told = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    told |= {name: environment[name] for name in names if name in environment}
    try:
        number, world, local, local_world = (int(told[name]) for name in names)
    except ValueError:
        number, world, local, local_world = -1, 0, 0, 0
    if not (0 <= number < world and local >= 0 and local_world > 0):
        variables = ", ".join(f"{name}={text}" for name, text in told.items())
        raise ConfigError(f"the launcher's variables {variables} are no ranks; unset them, or use torchrun")
    return Rank(number, world, local, local_world)


def any_failed(rank: Rank, failed: bool) -> bool:
    """Whether a cell of any rank failed; waits for all.

    A launcher ends all ranks as soon as one leaves with an error, which must not hit those that still work.
    """
    if rank.world == 1 or "MASTER_ADDR" not in os.environ:
        return failed
    import torch
    import torch.distributed as distributed

    distributed.init_process_group("gloo", timeout=PATIENCE)
    number = torch.tensor(int(failed))
    distributed.all_reduce(number)
    distributed.destroy_process_group()
    return bool(number)
