"""Shared test set-up: thread settings before torch is imported, and the skip of GPU tests without a GPU."""

import os

# Spinning OpenMP workers make a step eight times slower as soon as another process is busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from toy_model import write_model


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture(scope="session")
def velocity_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("sd") / "velocity", "v_prediction")
