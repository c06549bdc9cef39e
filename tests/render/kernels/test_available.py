"""Test the selection of the Triton kernels."""

import torch

from render.kernels import available, probe_triton
from render.kernels.available import triton_available, triton_works


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
