"""What a run ran on."""

import platform

import torch

from training.report.system_info import PACKAGES, machine


def test_versions_and_the_device():
    facts = machine(torch.device("cpu"))
    assert facts["Python"] == platform.python_version() and facts["torch"] == torch.__version__
    assert facts["device"].startswith("CPU, ") and facts["numpy"][0].isdigit()
    assert set(PACKAGES) < set(facts)
    assert all(value == value.strip() and value for value in facts.values())
