"""Set environment variables for torch and Triton, check types, and skip GPU tests."""

import gc
import logging
import os
import signal
from pathlib import Path

# By default, idle OpenMP threads wait in a busy loop. A step is then eight times slower if another process
# is busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The tests run in one process per core, so more than one thread per process does not help.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

# The test modules import most packages, and imported modules are never freed. The garbage collector is
# disabled during the imports, because it would take a quarter of the time until the first test.
gc.disable()

# Without a GPU, kernels run on CPU tensors in Triton's interpreter. Triton reads TRITON_INTERPRET on import.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The jaxtyping signatures of these modules are checked at every call. Modules with kernels are not listed,
# because the import hook does not support kernels of numba and Triton.
CHECKED = [
    "dataset",
    "geometry.axes",
    "geometry.dmtet",
    "geometry.fixed_mesh",
    "geometry.marching_tets",
    "geometry.orientation",
    "geometry.regularisers",
    "geometry.sdf_network",
    "geometry.start_shape",
    "geometry.tet_grid",
    "render.camera",
    "render.texturing.bake",
    "render.texturing.decimate",
    "render.texturing.given",
    "render.texturing.painted_surface",
    "render.texturing.part_export",
    "render.texturing.texture_fit",
    "render.texturing.uv_spaces",
    "render.image_io.exr",
    "render.image_io.hdr",
    "render.image_io.image",
    "render.texturing.projection",
    "render.texturing.transfer",
    "render.texturing.unwrap",
    "render.texturing.uv",
    "render.gbuffer",
    "render.encoding.hash_grid",
    "render.encoding.reference",
    "render.mesh",
    "render.mesh_io.asset",
    "render.mesh_io.load",
    "render.mesh_io.gltf_buffers",
    "render.mesh_io.gltf_nodes",
    "render.mesh_io.polygons",
    "render.mesh_io.read_gltf",
    "render.mesh_io.read_obj",
    "render.mesh_io.read_off",
    "render.mesh_io.read_ply",
    "render.mesh_io.read_stl",
    "training.previews",
    "render.raster.reference",
    "render.raster.silhouette",
    "render.scene",
    "render.shade.brdf",
    "render.shade.light",
    "render.shade.material",
    "render.shade.normals",
    "render.control_image",
    "sd.conditions",
    "sd.control_net",
    "sd.kernels.fused_blocks",
    "sd.kernels.fused_denoiser",
    "sd.kernels.fused_transformer",
    "sd.mixed_guidance",
    "sd.multi_view",
    "sd.guidance",
    "sd.kernels.reference",
    "sd.schedule",
    "sd.scores",
    "sd.stable_diffusion",
    "sd.surface_noise",
    "sd.vsd",
]
install_import_hook(CHECKED, "beartype.beartype")

# Restore the default signal handlers. Otherwise the tests and their child processes would ignore SIGHUP if
# they are started with nohup, and SIGINT if they are started with "&" in a script.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


# The test files that take longest. They are started first, in this order, so that the test processes end at
# about the same time.
LONG = (
    "test_distributed",
    "test_train",
    "test_gallery",
    "test_notebook",
    "test_user_mesh",
    "test_make_tiny_sd",
)
LONG += (
    "test_objects",
    "test_triton_backend",
    "test_evaluation",
    "test_geometry_kernels",
    "test_make_classifier",
)
LONG += ("test_interface", "test_browser", "test_group_norm_triton", "test_fuzz", "test_end_to_end")

# The files of a group run in the same test process, because they share a process that takes seconds to start:
# the fork server of multiprocess_harness.py, and the compiler process of triton_compile.py.
GROUPS = {
    "test_distributed": "fork server",
    "test_make_tiny_sd": "fork server",
    "test_make_classifier": "fork server",
    "test_end_to_end": "fork server",
    "test_benchmark": "fork server",
    "test_signals": "fork server",
    "test_triton_backend": "compiler",
    "test_geometry_kernels": "compiler",
    "test_sd_kernels_compiled": "compiler",
    "test_render_kernels_compiled": "compiler",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Return a scheduler for --dist loadfile that runs the files of a group in one test process."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class GroupScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return GROUPS.get(Path(file).stem, file)

    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Return the device for tests of Triton kernels: the GPU, or the CPU if there is no GPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True, scope="session")
def reduced_work():
    from reduced_work import reduce_work

    with pytest.MonkeyPatch.context() as patch:
        reduce_work(patch.setattr)
        yield


@pytest.fixture(autouse=True)
def restore_root_logger():
    """Remove log handlers that a program under test adds: pytest closes their streams after the test."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.fixture(autouse=True)
def exact_float32():
    """Disable TF32 before each test, and restore the settings after it.

    torch uses TF32 for convolutions by default, and some programs under test enable it for the process. TF32
    has 11 significant bits, so results of equal float32 functions would differ by about 5e-4.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    from toy_model import write_model

    return write_model(tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture(scope="session")
def velocity_folder(tmp_path_factory):
    from toy_model import write_model

    return write_model(tmp_path_factory.mktemp("sd") / "velocity", "v_prediction")
