"""Test that out-of-memory errors of all kinds give a one-line message."""

import json
import re
import resource
from pathlib import Path

import pytest
import torch

import train
from configs.schema import parse_config
from training.checkpoint import save_checkpoint
from training.out_of_memory import OutOfMemory, explain_out_of_memory, is_out_of_memory, peak_memory

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total of 8 GiB")


@pytest.mark.parametrize(
    ("error", "shortage"),
    [
        (CUDA, True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("Cuda error: 2[cudaMalloc(&m_gpuPtr, bytes);]"), True),
        (RuntimeError("Cuda error: 209[cudaLaunchKernel]"), False),
        (RuntimeError("expected a tensor"), False),
    ],
)
def test_memory_errors_are_recognised(error, shortage):
    assert is_out_of_memory(error) == shortage


def test_the_allocator_of_the_cpu_is_recognised():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def config(folder, **values):
    return parse_config({"out_dir": str(folder), "batch": 8, **values}, "test")


def test_the_line_names_the_keys_and_the_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "checkpoints", 300, {"x": torch.zeros(1)}, {})
    with pytest.raises(OutOfMemory) as error, explain_out_of_memory(config(tmp_path, dmtet_grid=128)):
        raise CUDA
    message = str(error.value)
    for words in (
        "2.50 GiB",
        "batch (8)",
        "train_res ([512, 512])",
        "dmtet_grid (128)",
        "step 300",
        "out_dir",
    ):
        assert words in message
    assert "\n" not in message


def test_appearance_names_its_own_keys(tmp_path):
    painted = config(tmp_path, mode="appearance_modeling", base_mesh="x.obj")
    with pytest.raises(OutOfMemory, match=r"texture_res.*nothing was saved yet") as error:
        with explain_out_of_memory(painted):
            raise MemoryError
    assert "dmtet_grid" not in str(error.value)


def test_a_surface_without_a_grid_does_not_name_it(tmp_path):
    moved = config(tmp_path, surface="mesh", base_mesh="x.obj")
    with pytest.raises(OutOfMemory, match="lower one of batch") as error, explain_out_of_memory(moved):
        raise MemoryError
    assert "dmtet_grid" not in str(error.value)


def test_other_errors_are_unchanged(tmp_path):
    with pytest.raises(RuntimeError, match="a fault of ours"), explain_out_of_memory(config(tmp_path)):
        raise RuntimeError("a fault of ours")


def test_the_program_ends_with_one_line_and_2(tmp_path, monkeypatch, caplog, capsys, model_folder):
    def greedy(*arguments):
        raise CUDA

    monkeypatch.setattr(train, "run_config", greedy)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"out_dir": str(tmp_path / "out"), "sd_model": str(model_folder)}))
    assert train.main(["--config", str(path)]) == 2
    assert caplog.records[-1].getMessage().startswith("error: out of memory (tried to allocate 2.50 GiB)")
    assert "Traceback" not in capsys.readouterr().err


def test_the_peak_includes_freed_memory():
    before = float(re.search(r"([\d.]+) GB", peak_memory())[1])
    used = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    held = torch.empty(int(1e9 * before) - used + 400_000_000, dtype=torch.uint8)
    held[::4096] = 1  # A page of memory counts as used once a byte of it is written.
    del held
    assert float(re.search(r"([\d.]+) GB", peak_memory())[1]) >= before + 0.3


@pytest.mark.gpu
def test_the_peak_of_a_gpu_is_named():
    held = torch.ones(100_000_000, device="cuda")
    assert float(re.search(r"on the GPU ([\d.]+) GB", peak_memory())[1]) >= held.numel() * 4e-9
