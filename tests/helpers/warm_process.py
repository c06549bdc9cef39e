"""Load the packages and compiled kernels of a run. Processes that are forked afterwards start faster.

This module also reduces the work of a run. Only the fork server imports this module. All threads must end
before a fork, because a fork copies only the thread that calls it.
"""

import importlib
import tempfile
from functools import partial
from pathlib import Path

import torch
from multiprocess_harness import FIT
from reduced_work import reduce_work, shorten_fit
from toy_config import TINY

from configs.schema import parse_config
from render.camera import orbit
from render.shade import brdf
from training.tasks import build_task

# The program imports these packages only inside functions, so they are imported here by name.
LATE = (
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_ddpm",
    "transformers.models.clip.modeling_clip",
)
# The faces of this tetrahedron do not overlap in the texture, so a run does not unwrap it again.
TETRAHEDRON = """v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1
vt 0 0\nvt 1 0\nvt 0 1\nvt 1 1\nvt 0.5 0.5\nvt 0.5 0
f 1/1 3/5 2/3\nf 1/1 2/2 4/5\nf 1/2 4/4 3/5\nf 2/3 3/5 4/4
"""


def render_once(folder: Path) -> None:
    """Render a painted tetrahedron, and compute the gradient of the image."""
    (folder / "mesh.obj").write_text(TETRAHEDRON)
    values = {"mode": "appearance_modeling", "base_mesh": str(folder / "mesh.obj"), "out_dir": str(folder)}
    task, _, _ = build_task(parse_config({**TINY, **values}, "warm"))
    task.scene(orbit(1, (8, 8))).sum().backward()
    task.scene.rasteriser._pool.shutdown()
    for name in ("render.encoding.hash_grid_numba", "render.shade.prefilter_numba"):
        pool = importlib.import_module(name)._pool
        pool(torch.get_num_threads()).shutdown()
        pool.cache_clear()


torch.set_num_threads(1)
shorten_fit(FIT)
reduce_work()
brdf.split_sum_table = partial(brdf.split_sum_table, 32)
for late in LATE:
    importlib.import_module(late)
with tempfile.TemporaryDirectory() as temporary:
    render_once(Path(temporary))
