"""Test the selection of the Triton kernels."""

import sys
import threading

import pytest
import torch

from render.kernels import available, probe_triton
from render.kernels.available import numba_module, triton_available, triton_started, triton_works


def test_probe_kernel_runs(kernel_device):
    assert triton_works.__wrapped__(kernel_device)


def test_wrong_probe_result_disables_triton_with_one_warning(kernel_device, monkeypatch, caplog):
    right = torch.equal
    monkeypatch.setattr(probe_triton.torch, "equal", lambda *pair: not right(*pair))
    assert not triton_works.__wrapped__(kernel_device)
    assert "Triton cannot run (ArithmeticError: the result of a test kernel is wrong)" in caplog.text


def test_cpu_and_half_precision_tensors_are_not_supported(monkeypatch):
    monkeypatch.setattr(available, "triton_works", lambda device: True)
    meta = torch.zeros(2)
    assert not triton_available(meta)
    assert not triton_available(meta, meta.half())


def test_triton_starts_in_a_thread_during_the_block(monkeypatch):
    entered, ended, tested = threading.Event(), [], []

    def test(device):
        assert entered.wait(30)
        tested.append((device, sys.getswitchinterval()))

    monkeypatch.setattr(available, "triton_works", test)
    before, device = sys.getswitchinterval(), torch.device("cuda")
    with triton_started(device):
        ended.extend(tested)
        entered.set()
    assert ended == []
    assert tested == [(device, pytest.approx(1e-4))]
    assert sys.getswitchinterval() == before


def test_an_error_of_the_first_test_of_triton_is_raised_by_the_next_one(monkeypatch):
    def fail(device):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(probe_triton, "run_probe", fail)
    # No test has used this device, so the result is not cached.
    before, device = sys.getswitchinterval(), torch.device("cuda", 99)
    with triton_started(device):
        pass
    assert sys.getswitchinterval() == before
    with pytest.raises(torch.OutOfMemoryError):
        triton_works(device)


def test_triton_does_not_start_for_a_cpu(monkeypatch):
    tested = []
    monkeypatch.setattr(available, "triton_works", tested.append)
    with triton_started(torch.device("cpu")):
        assert threading.current_thread() is threading.main_thread()
    assert tested == []


def test_a_numba_module_that_cannot_run_is_logged_once(monkeypatch, caplog):
    """numba raises ImportError or SystemError if it does not support the version of NumPy."""

    def broken(name):
        raise SystemError("initialization of _internal failed")

    monkeypatch.setattr(available.importlib, "import_module", broken)
    for _ in range(2):
        assert numba_module("render.no_such_module", "light: using torch (slower)") is None
    assert caplog.messages == [
        "light: using torch (slower), because numba cannot run: SystemError: initialization of _internal "
        "failed; pip install numba"
    ]
    assert numba_module("render.kernels.available", "never") is None
    monkeypatch.undo()
    assert numba_module("render.kernels.probe_triton", "never") is not None
