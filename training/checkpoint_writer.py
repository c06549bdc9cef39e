"""Writing of checkpoints in a thread while the training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self


class CheckpointWriter:
    """A context manager that writes one checkpoint at a time in a thread.

    An error of the thread is raised once, by the next call of any method. On exit, the checkpoint is
    finished. If it could not be written, that error replaces an error of the block.
    """

    def __init__(self) -> None:
        self._writing: Future[object] | None = None

    def start(self, write: Callable[[], object]) -> None:
        """Wait for the previous checkpoint, then call `write` in a thread.

        `write` must not read tensors that the training changes.
        """
        self.finish()
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = pool.submit(write)
        # The thread ends after the checkpoint.
        pool.shutdown(wait=False)

    def check(self) -> None:
        """Raise the error of the thread if there is one. Do not wait."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint is on disk."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()
