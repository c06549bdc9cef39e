"""Control of Python's cyclic garbage collector while the program starts."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector during the block.

    Objects that exist at the end of the block are excluded from later collections. Imports and the set-up
    create half a million objects that live until the process ends. Without the pause, the collector would
    traverse these objects several times, which takes 1 s of the 10 s that the program needs to start. After
    `gc.unfreeze`, the collector traverses them again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
