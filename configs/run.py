"""Settings of the run as a whole: mode, prompt, output folder, save intervals, previews and device."""

import os
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from configs.modes import MODES, Mode
from geometry.axes import FRONT, UP, Axis, frame_rotation
from render.raster.select import RasteriserName

STRICT = ConfigDict(extra="forbid", strict=True)

OUTPUT_ROOT = Path("out")
MESH_FILE = Path("dmtet_mesh", "mesh.obj")
# Name of the preview row that shows the environment.
LATLONG = "latlong"

Pixels = Annotated[int, Ge(8), Le(8192)]
Resolution = tuple[Pixels, Pixels]


@dataclass(frozen=True, config=STRICT)
class MaterialPanel:
    """A preview panel that shows one material channel."""

    bsdf: Literal["kd", "ks", "normal"]


@dataclass(frozen=True, config=STRICT)
class LightPanel:
    """A preview panel that shows the environment as a latitude-longitude map."""

    latlong: Literal[True]


def output_folder(out_dir: str) -> Path:
    """Return the folder for the value `out_dir`.

    "pineapple1" and "out/pineapple1" both give out/pineapple1. An absolute path is returned unchanged.
    """
    path = Path(out_dir)
    inside = path.is_absolute() or (path.parts[:1] == OUTPUT_ROOT.parts and len(path.parts) > 1)
    return path if inside else OUTPUT_ROOT / path


def written_mesh(name: str | Path) -> str:
    """Return the absolute path of a mesh, to compare it with the meshes that configs write.

    For the mesh.glb of a run, the path of the run's mesh.obj is returned, because a run writes both files.
    """
    path = Path(os.path.abspath(name))
    own = path.parent.name == MESH_FILE.parent.name and path.name == MESH_FILE.with_suffix(".glb").name
    return str(path.with_name(MESH_FILE.name) if own else path)


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Mode, prompt, output folder, intervals of checkpoints and previews, and device of a run."""

    out_dir: str = Field(
        description='output folder: "pineapple1" and "out/pineapple1" both mean out/pineapple1 in the '
        "current directory; an absolute path is used unchanged"
    )
    mode: Literal["geometry_modeling", "appearance_modeling"] = Field(
        "geometry_modeling",
        description="geometry_modeling makes a shape, appearance_modeling paints base_mesh",
    )
    base_mesh: str | None = Field(
        None,
        min_length=1,
        description="mesh file: the mesh that appearance_modeling paints, or in geometry_modeling the start "
        "shape custom_mesh or the mesh whose vertices move with surface mesh",
    )
    normalise_mesh: bool = Field(
        False,
        description="in appearance_modeling and with surface mesh, centre base_mesh and scale it to a radius "
        "of 0.75 during the run; the exported mesh keeps its own position and size",
    )
    base_mesh_up: Axis = Field(UP, description="axis of base_mesh that points up")
    base_mesh_front: Axis = Field(
        FRONT,
        description="axis of base_mesh that points to the front; the mesh is rotated while a run uses it, "
        "and the exported mesh is rotated back",
    )
    seed: int = Field(
        42,
        ge=0,
        lt=2**63,
        description="seed of all random numbers; the same seed and settings give the same result",
    )
    batch: int = Field(1, ge=1, le=1024, description="views per step, process and micro-batch")
    grad_accum: int = Field(
        1,
        ge=1,
        le=1024,
        description="micro-batches of a step that each process computes in sequence; n on one process "
        "computes the same as n processes",
    )
    train_res: Resolution = Field((512, 512), description="height and width of the training views, pixels")
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="learning rate of the optimizer; null means 1e-3 in geometry_modeling and 1e-2 in "
        "appearance_modeling",
    )
    save_interval: int = Field(
        1000,
        ge=0,
        description="steps between preview stills, which are also written after the last step; 0: none",
    )
    video_interval: int = Field(
        10, ge=0, description="steps between frames of the training video; 0: no video"
    )
    checkpoint_interval: int = Field(
        100, ge=0, description="steps between checkpoints; 0: only one at the end"
    )
    validate: bool = Field(
        True, description="after the last step, render the turntable and the frames and GIFs in validate/"
    )
    display: tuple[MaterialPanel | LightPanel, ...] = Field(
        (),
        description="rows below the rendering in the preview stills, in this order; an empty list shows all "
        "layers; layers that the mode does not have are left out",
        json_schema_extra={"allowed": 'a list of {"bsdf": "kd" | "ks" | "normal"} and {"latlong": true}'},
    )
    preview_res: Resolution = Field(
        (512, 512), description="height and width of stills, videos and turntable, pixels"
    )
    flip_normal: bool = Field(
        False,
        alias="if_flip_the_normal",
        description="in geometry_modeling, make every positive x component of the normals that the prior "
        "sees negative; reduces several faces on one object",
    )
    train_background: Literal["black", "white"] = Field(
        "black", description="background of the training views of appearance_modeling"
    )
    log: Literal["jsonl", "tensorboard"] = Field(
        "jsonl",
        description="tensorboard also writes numbers and stills for TensorBoard (optional package); "
        "log.jsonl is always written",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$",
        description="auto is CUDA if it is available, otherwise the CPU",
        json_schema_extra={"allowed": "auto, cpu, cuda or cuda:N"},
    )
    rasteriser: RasteriserName = Field(
        "auto",
        description="auto: triton on CUDA, or nvdiffrast if triton cannot run; numba on the CPU; "
        "reference if none of these can run",
    )

    @property
    def output_folder(self) -> Path:
        """The output folder of this run. A relative path starts at the current directory."""
        return output_folder(self.out_dir)

    @property
    def mesh_path(self) -> Path:
        """The path of the mesh that this run writes after its last step."""
        return self.output_folder / MESH_FILE

    @property
    def rotation(self) -> Float[Tensor, "3 3"] | None:
        """The rotation of base_mesh to this program's frame. None means the identity."""
        return frame_rotation(self.base_mesh_up, self.base_mesh_front)

    @property
    def panels(self) -> tuple[str, ...]:
        """The names of the layers that `display` lists."""
        return tuple(LATLONG if isinstance(panel, LightPanel) else panel.bsdf for panel in self.display)

    @property
    def traits(self) -> Mode:
        """Labels and defaults of the mode."""
        return MODES[self.mode]

    @property
    def effective_learning_rate(self) -> float:
        """The learning rate: the key's value, or the mode's default if the value is null."""
        return self.learning_rate or self.traits.learning_rate
