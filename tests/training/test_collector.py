"""Test the pause of Python's garbage collector."""

import gc

import pytest

from training.collector import collector_paused


@pytest.fixture(autouse=True)
def end_exemption():
    yield
    gc.unfreeze()


def test_collector_is_off_inside_and_on_afterwards():
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_collector_is_on_after_an_error():
    with pytest.raises(ValueError), collector_paused():
        raise ValueError
    assert gc.isenabled()


def test_collector_skips_the_objects_of_the_pause_until_unfreeze():
    with collector_paused():
        kept = [object() for _ in range(10)]
    assert not any(item is kept for item in gc.get_objects())
    gc.unfreeze()
    assert any(item is kept for item in gc.get_objects())
