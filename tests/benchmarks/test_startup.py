"""Test the startup benchmark: the parts exclude nested parts, and all functions that it measures exist."""

import sys
from importlib import import_module
from operator import attrgetter
from types import ModuleType

from benchmarks.startup import PARTS, STEPS, Clock, step_namer, table


def test_a_part_excludes_nested_parts(monkeypatch):
    module = ModuleType("measured")
    module.inner = lambda: 7
    module.outer = lambda: module.inner() + module.inner()
    monkeypatch.setitem(sys.modules, "measured", module)
    clock, ticks = Clock(), iter(range(100))
    clock.now = lambda: (next(ticks), 0.0)
    clock.watch("measured:inner", step_namer("call"))
    clock.watch("measured:outer", lambda: "outer")
    assert module.outer() == 14
    # The clock advances by one tick at each reading. The outer part lasts from tick 0 to 5. The inner part
    # lasts from tick 1 to 2, and again from 3 to 4.
    assert clock.seconds == {"first call": [1, 0], "other calls": [1, 0], "outer": [3, 0]}


def test_the_measured_functions_exist():
    for place in [*sum(PARTS.values(), []), *STEPS]:
        module, _, path = place.partition(":")
        assert callable(attrgetter(path)(import_module(module)))


def test_table_has_a_row_per_part_and_the_totals():
    lines = table({"import torch": [1.0, 2.0], "light": [0.5, 0.25]}, [1.25, 2.5]).splitlines()
    assert "| light | 0.50 | 0.25 |" in lines and lines[-1] == "| **whole command** | 1.50 | 2.25 |"
    assert lines[-2] == "| **command to the first step** | 1.25 | 2.50 |"


def test_time_to_the_first_step(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(Clock, "now", staticmethod(lambda: (next(ticks), 0.0)))
    clock = Clock()
    for name in ("other", "first step", "other steps"):
        with clock.part(name):
            pass
    # The clock is read once at the start, twice for the first part, twice for the second, and once more.
    assert clock.first_step == [5, 0]
