"""Shared test set-up: what must be set before torch and Triton are imported, and the skip of GPU tests."""

import logging
import os

# Spinning OpenMP workers make a step eight times slower as soon as another process is busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from jaxtyping import install_import_hook

# Without a GPU, Triton's kernels run in its interpreter, on CPU tensors. It looks here when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Shapes in signatures are checked at every call. Not in modules with kernels of numba or Triton, which cannot
# hold checks.
CHECKED = [
    "dataset",
    "geometry.dmtet",
    "geometry.fixed_mesh",
    "geometry.marching_tets",
    "geometry.orientation",
    "geometry.sdf_network",
    "geometry.start_shape",
    "geometry.tet_grid",
    "render.camera",
    "render.texturing.bake",
    "render.texturing.decimate",
    "render.image_io.hdr",
    "render.image_io.image",
    "render.texturing.projection",
    "render.texturing.transfer",
    "render.texturing.unwrap",
    "render.texturing.uv",
    "render.gbuffer",
    "render.encoding.hash_grid",
    "render.mesh",
    "render.mesh_io.load",
    "render.mesh_io.read_obj",
    "training.previews",
    "render.raster.reference",
    "render.raster.silhouette",
    "render.scene",
    "render.shade.brdf",
    "render.shade.light",
    "render.shade.material",
    "render.shade.normals",
    "sd.kernels.fused_blocks",
    "sd.guidance",
    "sd.kernels.reference",
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


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Where Triton's kernels run here: the GPU, otherwise the CPU, interpreted (slow: give them little)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
