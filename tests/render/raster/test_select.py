import importlib
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from render.raster import select
from render.raster.select import choose_rasteriser

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def clear_logged_messages():
    select._log_once.cache_clear()


@pytest.fixture
def broken(monkeypatch):
    """Return a function that makes the import of a backend's module fail."""

    def break_import(module: str, error: Exception) -> None:
        real = importlib.import_module

        def fake(name, *args):
            if name == module:
                raise error
            return real(name, *args)

        monkeypatch.setattr(importlib, "import_module", fake)

    return break_import


def test_numba_on_the_cpu_is_logged_once(caplog):
    pytest.importorskip("numba")
    with caplog.at_level(logging.INFO):
        names = [choose_rasteriser(CPU).name for _ in range(2)]
    assert names == ["numba", "numba"]
    assert [record.getMessage() for record in caplog.records] == [
        "rasteriser: numba on cpu, the first choice"
    ]


def test_a_run_without_numba_uses_the_reference():
    """The script runs in a new interpreter that cannot import numba."""
    script = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch\n"
        "from render.raster.select import choose_rasteriser\n"
        "print(choose_rasteriser(torch.device('cpu')).name)\n"
        "choose_rasteriser(torch.device('cpu'), 'numba')"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "reference\n"
    assert run.stderr.splitlines()[-1].startswith("ValueError: rasteriser: 'numba' cannot run: ")
    assert "pip install numba" in run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "error", [ImportError("no numba"), OSError("no libllvm"), RuntimeError("no locator")]
)
def test_auto_logs_the_reason_for_the_reference(broken, caplog, error):
    broken("render.raster.numba.backend", error)
    with caplog.at_level(logging.INFO):
        assert choose_rasteriser(CPU).name == "reference"
    (record,) = caplog.records
    assert record.getMessage() == f"rasteriser: reference (slower) on cpu, as numba cannot run: {error}"


@pytest.fixture
def triton_cuda(monkeypatch):
    """Return the Triton module. Its self-test on a GPU is replaced by a stub that always passes."""
    module = pytest.importorskip("render.raster.triton.backend", exc_type=ImportError)
    monkeypatch.setattr(module, "self_test", lambda device: None)
    return module


def test_triton_on_cuda_needs_no_nvdiffrast(broken, triton_cuda, caplog):
    broken("render.raster.nvdiffrast_backend", ImportError("no nvdiffrast"))
    with caplog.at_level(logging.INFO):
        assert choose_rasteriser(CUDA).name == choose_rasteriser(CUDA, "triton").name == "triton"
    (record,) = caplog.records
    assert record.getMessage() == "rasteriser: triton on cuda, the first choice"
    with pytest.raises(ValueError, match="'nvdiffrast' cannot run: no nvdiffrast .*CUDA toolkit"):
        choose_rasteriser(CUDA, "nvdiffrast")


def test_nvdiffrast_if_triton_does_not_run(broken, monkeypatch, caplog):
    broken("render.raster.triton.backend", ImportError("no triton"))
    monkeypatch.setitem(select.BUILDERS, "nvdiffrast", lambda device: SimpleNamespace(name="nvdiffrast"))
    with caplog.at_level(logging.INFO):
        assert choose_rasteriser(CUDA).name == "nvdiffrast"
    assert [record.getMessage() for record in caplog.records] == [
        "rasteriser: nvdiffrast on cuda, as triton cannot run: no triton"
    ]


def test_cuda_without_nvdiffrast_and_triton(broken, caplog):
    broken("render.raster.nvdiffrast_backend", ImportError("no nvdiffrast"))
    broken("render.raster.triton.backend", ImportError("no triton"))
    with caplog.at_level(logging.INFO):
        assert choose_rasteriser(CUDA).name == "reference"
    assert (
        "reference (slower) on cuda, as triton cannot run: no triton and nvdiffrast cannot run: no nvdiffrast"
        in caplog.text
    )
    with pytest.raises(ValueError, match="'triton' cannot run: no triton .*--device cuda"):
        choose_rasteriser(CUDA, "triton")


def test_failing_kernels_are_not_selected(broken, triton_cuda, monkeypatch, caplog):
    def fail(device):
        raise ArithmeticError("wrong\nat length")

    monkeypatch.setattr(triton_cuda, "self_test", fail)
    broken("render.raster.nvdiffrast_backend", ImportError("no nvdiffrast"))
    with caplog.at_level(logging.INFO):
        assert choose_rasteriser(CUDA).name == "reference"
    assert (
        caplog.records[0]
        .getMessage()
        .startswith(
            "rasteriser: reference (slower) on cuda, as triton cannot run: ArithmeticError: wrong and"
        )
    )


@pytest.mark.parametrize(("device", "name"), [(CPU, "nvdiffrast"), (CPU, "triton"), (CUDA, "numba")])
def test_preferred_backend_on_the_wrong_device(device, name):
    with pytest.raises(ValueError, match=f"'{name}' cannot run: it does not support {device.type}.*needs"):
        choose_rasteriser(device, name)


def test_reference_on_request_and_unknown_names():
    assert choose_rasteriser(CPU, "reference").name == "reference"
    with pytest.raises(ValueError, match="'opengl' is unknown; allowed: auto, nvdiffrast, "):
        choose_rasteriser(CPU, "opengl")


def test_override_replaces_the_choice_of_the_caller(monkeypatch):
    monkeypatch.setattr(select, "OVERRIDE", "reference")
    assert choose_rasteriser(CPU).name == choose_rasteriser(CPU, "numba").name == "reference"
