"""Writing of checkpoints, stills and video frames in a thread while the training goes on."""

from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager


class FinishedOnExit(AbstractContextManager):
    """A context manager that calls its `finish` on exit."""

    @abstractmethod
    def finish(self) -> None: ...

    def __exit__(self, *exception: object) -> None:
        self.finish()


class BackgroundWriter(FinishedOnExit):
    """A context manager that calls one function at a time in a thread.

    An error of the function is raised once, by the next call of any method. On exit, the function is
    finished. Its error replaces an error of the block.
    """

    def __init__(self) -> None:
        self._writing: Future[object] | None = None

    @property
    def busy(self) -> bool:
        """Whether the function is still running."""
        return self._writing is not None and not self._writing.done()

    def start(self, write: Callable[[], object]) -> None:
        """Wait for the previous function, then call `write` in a thread.

        `write` must not read tensors that the training changes.
        """
        self.finish()
        pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._writing = pool.submit(write)
        # The thread ends after the function.
        pool.shutdown(wait=False)

    def check(self) -> None:
        """Raise the error of the function if it has ended with one. Do not wait."""
        if not self.busy:
            self.finish()

    def finish(self) -> None:
        """Wait until the function has ended."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
