"""Test the selection of the Triton kernels."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from render.kernels import available, probe_triton
from render.kernels.available import numba_module, triton_available, triton_started, triton_works

ROOT = Path(__file__).resolve().parents[3]


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


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_triton_starts_on_the_second_gpu_and_runs_there():
    program = """
import torch
from render.kernels.available import triton_started, triton_works

with triton_started(torch.device("cuda", 1)):
    pass
print(triton_works.cache_info().currsize, triton_works(torch.device("cuda", 1)))
print(torch.cuda.memory_reserved(0), torch.arange(3, device="cuda:1").sum().item())
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout.split(), run.stderr) == (["1", "True", "0", "3"], "")


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
