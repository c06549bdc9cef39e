"""The last checkpoint and stills of a run, which are written in threads while the export is prepared."""

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from training.signals import SIGNALS, SignalRecorder


class LastOutputs(SignalRecorder):
    """A context manager that writes the last checkpoint in a thread. The state must not change afterwards.

    On exit, the checkpoint is finished, and then the log and the writer of stills are closed. If the
    checkpoint could not be written, that error replaces an error of the block.
    """

    def __init__(self) -> None:
        super().__init__(SIGNALS)
        self._writing: Future[object] | None = None
        self._previous = {}
        self._open = ExitStack()

    @property
    def started(self) -> bool:
        """Whether this command has trained the last step."""
        return self._writing is not None

    def start_checkpoint(self, save: Callable[[], object]) -> None:
        """Call `save` in a thread."""
        assert self._writing is None, "a run has one last checkpoint"
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = pool.submit(save)
        self._writing.add_done_callback(self._repeat_signal)
        # The thread ends after the checkpoint.
        pool.shutdown(wait=False)

    def close_later(self, writers: ExitStack) -> None:
        """Close the writers of the training loop on exit instead of at the end of the loop."""
        self._open.push(writers)

    def hold_signals(self, received: int | None = None) -> None:
        """Delay signals until the checkpoint is on disk. The training loop calls this at its end.

        received: a signal that arrived too late in the last step to stop the loop. It is sent again.
        """
        if self._writing is not None:
            super().__enter__()
            if received is not None:
                signal.raise_signal(received)

    def finish_checkpoint(self) -> None:
        """Wait until the checkpoint is on disk. Raise the error if it could not be written."""
        if self._writing is not None:
            self._writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._open:
            try:
                self.finish_checkpoint()
            finally:
                super().__exit__(kind, error, traceback)

    def _record(self, number: int, frame: object) -> None:
        """Record the signal. If the checkpoint is on disk, restore the previous handler and call it."""
        super()._record(number, frame)
        if self._writing.done():
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)

    def _repeat_signal(self, _: Future[object]) -> None:
        """Send the recorded signal again, from the thread that has written the checkpoint.

        It is sent to the main thread, so that it ends a wait of the main thread.
        """
        if self.number is not None:
            signal.pthread_kill(threading.main_thread().ident, self.number)
