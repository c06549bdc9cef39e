"""Reduce the work of a run, for tests that do not need a result of high quality."""

from geometry.start_shape import make_fit_pool
from render.shade import light, prefilter
from sd import schedule
from training import tasks


class SmallFitPool:
    """A FitPool that draws a tenth of the usual points."""

    def __init__(self, pool):
        self.pool = pool

    def to(self, device):
        return SmallFitPool(self.pool.to(device))

    def draw(self, generator):
        return self.pool.draw(generator, surface=500, box=300)


def start_small_pool(shape, box_points, generator):
    return lambda: SmallFitPool(make_fit_pool(shape, box_points, generator, surface=5000))


def prefilter_with_few_samples(cube, lookups=600_000):
    return prefilter.prefilter(cube, lookups)


def reduce_work(set_attribute=setattr):
    """Fit start shapes with a tenth of the points, and prefilter fixed lights with a tenth of the samples.

    The tests of the fit and of the prefilter do not use this function, because they choose their own sizes.
    """
    set_attribute(tasks, "start_fit_pool", start_small_pool)
    set_attribute(light, "prefilter", prefilter_with_few_samples)


def shorten_fit(steps, set_attribute=setattr):
    """Fit start shapes for `steps` steps instead of 400."""
    set_attribute(schedule, "FIT_STEPS", steps)
    set_attribute(tasks, "FIT_STEPS", steps)
