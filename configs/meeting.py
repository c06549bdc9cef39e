"""Processes find each other in a key-value store that may still hold what earlier ones have left there."""

import json
import time
import uuid
from typing import Protocol


class Store(Protocol):
    """As torch.distributed has it."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


def agree_on_round(store: Store, rank: int, world: int, seconds: float) -> str:
    """A name that these `world` processes share, and that no others have had.

    torchrun starts its workers again over the same store, so the addresses of the dead are still in it. Each
    process leaves a word of its own; the first rank repeats all words, and who finds its own among them
    knows that it is spoken to.

    Raises:
        TimeoutError: not all have come in time.
    """
    word, until = uuid.uuid4().hex, time.monotonic() + seconds
    store.set(f"hello/{rank}", word)
    while time.monotonic() < until:
        if rank == 0:
            _repeat(store, word, world)
            if store.check([f"{word}/{other}" for other in range(world)]):
                return word
        if store.check(["go"]):
            name, words = json.loads(store.get("go"))
            if words[rank : rank + 1] == [word]:
                store.set(f"{name}/{rank}", "")
                if rank:
                    return name
        time.sleep(0.02)
    raise TimeoutError(f"not all of the {world} processes have come within {seconds:.0f} s")


def _repeat(store: Store, name: str, world: int) -> None:
    keys = [f"hello/{rank}" for rank in range(world)]
    if store.check(keys):
        store.set("go", json.dumps([name, [store.get(key).decode() for key in keys]]))
