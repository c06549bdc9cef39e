"""Test the list of versions and hardware in a report."""

import platform

import torch

from training.report.system_info import PACKAGES, machine


def test_versions_and_the_device():
    found = machine(torch.device("cpu"))
    assert found["Python"] == platform.python_version() and found["torch"] == torch.__version__
    assert found["device"].startswith("CPU, ") and found["numpy"][0].isdigit()
    assert set(PACKAGES) < set(found)
    assert all(value == value.strip() and value for value in found.values())
