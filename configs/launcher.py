"""What a launcher (torchrun) tells each of the processes that it starts, by environment variables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from configs.errors import ConfigError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Rank:
    """This process among `world`, and among the `local_world` of its machine."""

    number: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    def share(self, items: Sequence[Item]) -> list[Item]:
        """The items of this rank, by their place among all."""
        return list(items[self.number :: self.world])

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
