"""Shared test set-up: thread settings before torch is imported, and the skip of GPU tests without a GPU."""

import logging
import os

# Spinning OpenMP workers make a step eight times slower as soon as another process is busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes in signatures are checked at every call. Not in modules with numba kernels, which cannot hold checks.
CHECKED = [
    "dataset",
    "geometry",
    "render.camera",
    "render.export.bake",
    "render.export.decimate",
    "render.export.hdr",
    "render.export.image",
    "render.export.transfer",
    "render.export.uv",
    "render.gbuffer",
    "render.hash_grid",
    "render.mesh",
    "render.mesh_file",
    "render.obj_reader",
    "render.preview",
    "render.raster.reference",
    "render.raster.silhouette",
    "render.scene",
    "render.shade.brdf",
    "render.shade.light",
    "render.shade.material",
    "render.shade.normal",
    "sd.guidance",
    "sd.schedule",
    "sd.stable_diffusion",
]
install_import_hook(CHECKED, "beartype.beartype")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def root_logger_as_it_was():
    """Programs under test set up logging to streams that pytest closes after the test."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    from toy_model import write_model

    return write_model(tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture(scope="session")
def velocity_folder(tmp_path_factory):
    from toy_model import write_model

    return write_model(tmp_path_factory.mktemp("sd") / "velocity", "v_prediction")
