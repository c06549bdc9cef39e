"""Control of Python's cyclic garbage collector while the program starts."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector. Afterwards it skips all objects that exist at that time.

    Imports and the set-up create half a million objects that live until the process ends. Without the pause,
    the collector traverses them several times, which takes 1 s of the 10 s of a start. `gc.unfreeze` includes
    the skipped objects again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
