"""Test that files are written while the training goes on, and that no error is lost."""

import threading

import pytest

from training.background_writer import BackgroundWriter

WAIT_SECONDS = 30


def full_disk() -> None:
    raise OSError("the disk is full")


def test_the_next_file_and_the_end_wait_for_the_one_that_is_being_written():
    proceed, events = threading.Event(), []

    def slow() -> None:
        assert proceed.wait(WAIT_SECONDS)
        events.append("first")

    with BackgroundWriter() as writer:
        writer.start(slow)
        writer.check()
        assert events == []
        threading.Timer(0.05, proceed.set).start()
        writer.start(lambda: events.append("second"))
        assert events[0] == "first"
    assert events == ["first", "second"]


@pytest.mark.parametrize("method", ["check", "finish", "start", "__exit__"])
def test_an_error_is_raised_once_by_the_next_call(method):
    writer, failed = BackgroundWriter(), threading.Event()

    def fail() -> None:
        failed.set()
        full_disk()

    writer.start(fail)
    assert failed.wait(WAIT_SECONDS)
    if method == "check":
        # `check` does not wait, so the thread may still be running.
        with pytest.raises(OSError, match="the disk is full"):
            for _ in range(WAIT_SECONDS * 1000):
                writer.check()
                threading.Event().wait(0.001)
    else:
        arguments = {"start": [full_disk], "__exit__": [None] * 3}.get(method, [])
        with pytest.raises(OSError, match="the disk is full"):
            getattr(writer, method)(*arguments)
    writer.check()
    writer.finish()


def test_an_error_of_the_writer_replaces_an_error_of_the_block():
    with pytest.raises(OSError, match="the disk is full"), BackgroundWriter() as writer:
        writer.start(full_disk)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), BackgroundWriter() as writer:
        writer.start(lambda: None)
        raise ZeroDivisionError
