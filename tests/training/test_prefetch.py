"""Test that random draws prepared in advance equal draws computed on demand."""

from training.prefetch import Prefetcher


def test_prepared_draws_are_returned_once_and_others_are_computed():
    made = []

    def draw(step, micro_batch):
        made.append((step, micro_batch))
        return [step, micro_batch]

    draws = Prefetcher(draw)
    assert draws.next(1, 0) == [1, 0]
    draws.prepare(2, range(3, 5))
    assert made == [(1, 0), (2, 3), (2, 4)]
    assert (draws.next(2, 4), draws.next(2, 3)) == ([2, 4], [2, 3]) and len(made) == 3
    # A second call computes the draw again, because the caller may have changed the first result.
    assert draws.next(2, 3) == [2, 3] and len(made) == 4


def test_unused_prepared_draws_are_freed():
    draws = Prefetcher(lambda step, micro_batch: object())
    draws.prepare(1, [0])
    stale = draws.next(1, 0)
    draws.prepare(1, [0])
    draws.prepare(2, [0])
    assert list(draws._ready) == [(2, 0)] and draws.next(1, 0) is not stale
