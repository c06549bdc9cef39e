"""Test the choice between functions by measurement."""

import logging

import pytest
import torch
from torch.nn import functional as F

from sd.kernels import fastest
from sd.kernels.attention import fastest_attention
from sd.kernels.fastest import Fastest


def choice(times, monkeypatch, **functions):
    """Return the name of the function that is chosen for one input, and the result of this function."""
    monkeypatch.setattr(fastest, "milliseconds", lambda function, device: times[len(function())])
    chosen = Fastest("test", functions)
    results = [chosen(torch.ones(2)) for _ in range(2)]
    assert torch.equal(*results)
    return next(iter(chosen.choices.values())), results[0]


def named(calls):
    """Return functions that record their calls. The length of a result is the number of its function."""

    class Result(torch.Tensor):
        def __len__(self):
            return self.number

    def make(number):
        def function(x):
            calls.append(number)
            result = (2 * x).as_subclass(Result)
            result.number = number
            return result

        return function

    return {f"f{number}": make(number) for number in range(3)}


@pytest.mark.parametrize(
    ("times", "expected"),
    [([3.0, 1.0, 2.0], "f1"), ([1.0, 2.0, 3.0], "f0"), ([1.0, 0.99, 0.98], "f0"), ([1.0, 0.99, 0.5], "f2")],
)
def test_fastest_function_is_chosen_once(times, expected, monkeypatch):
    calls = []
    name, _ = choice(times, monkeypatch, **named(calls))
    assert name == expected
    # All functions are called for the choice. Afterwards, only the chosen function is called.
    assert set(calls) == {0, 1, 2} and calls[-2:] == [int(expected[1])] * 2


def test_faulty_and_failing_functions_are_not_chosen(monkeypatch, caplog):
    def fails(x):
        raise RuntimeError("not supported")

    monkeypatch.setattr(fastest, "milliseconds", lambda function, device: 1.0 / function().sum().item())
    functions = {"default": lambda x: 2 * x, "wrong": lambda x: 3 * x, "nan": lambda x: x / 0, "fails": fails}
    with caplog.at_level(logging.WARNING):
        assert torch.equal(Fastest("test", functions)(torch.ones(2)), torch.full((2,), 2.0))
    assert [message.split(" of ")[0] for message in caplog.messages] == ["prior: wrong", "prior: nan"]


def test_each_shape_is_measured(monkeypatch):
    monkeypatch.setattr(fastest, "milliseconds", lambda function, device: 1.0)
    function = Fastest("test", {"default": lambda x: x, "other": lambda x: 1 * x})
    for size in (2, 3, 2):
        function(torch.ones(size))
    assert [key[0][0] for key in function.choices] == [(2,), (3,)]


def test_nothing_is_measured_during_a_capture(monkeypatch):
    monkeypatch.setattr(fastest, "is_capturing", lambda tensor: True)
    function = Fastest("test", {"default": lambda x: x, "other": lambda x: 2 * x})
    assert torch.equal(function(torch.ones(2)), torch.ones(2)) and not function.choices


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(12, 5, 4096, 64), (12, 10, 1024, 64), (12, 20, 64, 64), (2, 8, 1024, 40)])
@pytest.mark.parametrize("keys", [None, 77])
def test_attention_equals_the_exact_one(shape, keys):
    samples, heads, count, width = shape
    packed = torch.randn(samples, count, 3 * heads, width, device="cuda", dtype=torch.float16)
    q, k, v = packed.transpose(1, 2).chunk(3, dim=1)
    k, v = k[:, :, :keys], v[:, :, :keys]
    exact = F.scaled_dot_product_attention(*(part[:1].double() for part in (q, k, v)))
    found = fastest_attention()(q, k, v)
    assert (found[:1].double() - exact).norm() < 2e-3 * exact.norm()
