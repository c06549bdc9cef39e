"""Test numba's disk cache with damaged files, on a full disk and in a read-only folder."""

import errno
import importlib
import os
import sys

import pytest

from render.kernels import numba_kernel

SOURCE = """
from render.kernels.numba_kernel import kernel

@kernel
def twice(x):
    return 2 * x
"""


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Return a function that reimports a module with the numba kernel `twice` and returns twice(21)."""
    (tmp_path / "cached_module.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    numba_kernel._warn_once.cache_clear()

    def run():
        sys.modules.pop("cached_module", None)
        return importlib.import_module("cached_module").twice(21)

    yield run
    sys.modules.pop("cached_module", None)


def cache_files(tmp_path, suffix):
    return list((tmp_path / "__pycache__").glob(f"*.{suffix}"))


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: b"text", lambda c: c[: len(c) // 2]])
def test_damaged_numba_cache_is_replaced(compiled, tmp_path, caplog, suffix, damage):
    """A damaged cache is replaced, and one warning is logged. The next start logs no warning."""
    assert compiled() == 42
    (file,) = cache_files(tmp_path, suffix)
    damaged = damage(file.read_bytes())
    file.write_bytes(damaged)
    assert compiled() == 42
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and str(tmp_path) in warnings[0] and "is damaged and is replaced" in warnings[0]
    assert cache_files(tmp_path, suffix)[0].stat().st_size > len(damaged)
    caplog.clear()
    assert compiled() == 42 and not caplog.records


def test_full_disk_for_the_cache_logs_a_warning(compiled, tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(numba_kernel.FunctionCache, "_save_overload", full)
    assert compiled() == 42
    assert "is not written: No space left on device" in caplog.text and str(tmp_path) in caplog.text


def test_functions_compile_without_a_cache_folder(compiled, caplog, monkeypatch):
    def no_locator(*_):
        raise RuntimeError("cannot cache function 'twice': no locator available")

    monkeypatch.setattr(numba_kernel, "SafeCache", no_locator)
    assert compiled() == 42 and "numba has no cache" in caplog.text
