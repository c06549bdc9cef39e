"""Selection of the Triton kernels."""

import torch

from render.kernels import available, probe_triton
from render.kernels.available import triton_available, triton_works


def test_the_probe_runs_here(kernel_device):
    assert triton_works.__wrapped__(kernel_device)


def test_a_wrong_result_of_the_probe_turns_triton_off_with_one_line(kernel_device, monkeypatch, caplog):
    right = torch.equal
    monkeypatch.setattr(probe_triton.torch, "equal", lambda *pair: not right(*pair))
    assert not triton_works.__wrapped__(kernel_device)
    assert "Triton cannot run (ArithmeticError: the result of a test kernel is wrong)" in caplog.text


def test_tensors_on_the_cpu_and_in_half_precision_do_without(monkeypatch):
    monkeypatch.setattr(available, "triton_works", lambda device: True)
    meta = torch.zeros(2)
    assert not triton_available(meta)
    assert not triton_available(meta, meta.half())
