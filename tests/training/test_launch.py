"""Test the rendezvous of processes over a store that contains entries of workers that have ended."""

import random
import threading
import time

import pytest

from training.launch import rendezvous


class FakeStore(dict):
    """An in-memory key-value store for the threads of one process."""

    def set(self, key, value):
        time.sleep(random.uniform(0, 0.01))
        self[key] = value.encode()

    def get(self, key):
        return self[key]

    def check(self, keys):
        return all(key in self for key in keys)


def meet(store, world, ranks=None):
    found = {}

    def member(rank):
        time.sleep(random.uniform(0, 0.05))
        try:
            found[rank] = rendezvous(store, rank, world, 5.0 if ranks is None else 0.3)
        except TimeoutError:
            found[rank] = None

    threads = [threading.Thread(target=member, args=(rank,)) for rank in ranks or range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("world", [2, 5])
def test_all_ranks_get_the_same_new_name_in_every_round(world):
    store, names = FakeStore(), set()
    for _ in range(5):
        (name,) = set(meet(store, world).values())
        assert name and name not in names
        names.add(name)


@pytest.mark.parametrize("came", [[1], [0], [0, 2], [1, 2]])
def test_entries_of_ended_workers_are_ignored(came):
    store = FakeStore()
    meet(store, 3)
    # Rank 0 waits for all ranks. If rank 0 is missing, another rank may complete the rendezvous, but then
    # waits at the next barrier.
    found = meet(store, 3, came)
    assert found.get(0) is None and (0 in came or set(found.values()) == {None})
    (name,) = set(meet(store, 3).values())
    assert name
