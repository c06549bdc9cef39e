"""What concerns the run as a whole: what is made, where it goes, how often it is saved and shown, on what."""

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from configs.modes import MODES, Mode

STRICT = ConfigDict(extra="forbid", strict=True)

OUTPUT_ROOT = Path("out")
MESH_FILE = Path("dmtet_mesh", "mesh.obj")
# The preview row that shows the environment.
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
    """The folder of `out_dir`: "pineapple1" and "out/pineapple1" are out/pineapple1; absolute paths stay."""
    path = Path(out_dir)
    inside = path.is_absolute() or (path.parts[:1] == OUTPUT_ROOT.parts and len(path.parts) > 1)
    return path if inside else OUTPUT_ROOT / path


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """What is made, where it goes, how often it is saved and shown, and on what it runs."""

    out_dir: str = Field(
        description='where results go: "pineapple1" is the folder out/pineapple1 of the current directory, '
        "and so is out/pineapple1; an absolute path is used as it is"
    )
    mode: Literal["geometry_modeling", "appearance_modeling"] = Field(
        "geometry_modeling", description="make a shape, or paint the mesh that base_mesh names"
    )
    base_mesh: str | None = Field(
        None,
        min_length=1,
        description="mesh file: what appearance_modeling paints, and the start shape custom_mesh of "
        "geometry_modeling",
    )
    normalise_mesh: bool = Field(
        False,
        description="in appearance_modeling, paint base_mesh as if it stood around the origin, reaching 0.75 "
        "from it; the exported mesh keeps its own place and size",
    )
    seed: int = Field(42, ge=0, lt=2**63, description="the same seed and settings give the same result")
    batch: int = Field(1, ge=1, le=1024, description="views per iteration and process")
    grad_accum: int = Field(
        1,
        ge=1,
        le=1024,
        description="batches that a process takes one after the other for a step, as if each were a process",
    )
    train_res: Resolution = Field((512, 512), description="height and width of the training views, pixels")
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="of AdamW; null is 1e-3 in geometry_modeling and 1e-2 in appearance_modeling",
    )
    save_interval: int = Field(
        1000, ge=0, description="preview stills every so many iterations, and after the last; 0 is never"
    )
    video_interval: int = Field(
        10, ge=0, description="a frame of the film of the optimisation every so many iterations; 0 is no film"
    )
    checkpoint_interval: int = Field(
        100, ge=0, description="a checkpoint every so many iterations; 0 is only at the end"
    )
    validate: bool = Field(True, description="after the end, render the turntable and GIFs into validate/")
    display: tuple[MaterialPanel | LightPanel, ...] = Field(
        (),
        description="rows below the rendering in the preview stills, in this order; none is all that there "
        "is; what the mode does not have (kd and ks of a shape) is left out",
        json_schema_extra={"allowed": 'a list of {"bsdf": "kd" | "ks" | "normal"} and {"latlong": true}'},
    )
    preview_res: Resolution = Field(
        (512, 512), description="height and width of stills, film and turntable, pixels"
    )
    flip_normal: bool = Field(
        False,
        alias="if_flip_the_normal",
        description="in geometry_modeling, turn every positive x component of the rendered normals negative: "
        "against several faces on one object",
    )
    train_background: Literal["black", "white"] = Field(
        "black", description="behind the object in the training views of appearance_modeling"
    )
    log: Literal["jsonl", "tensorboard"] = Field(
        "jsonl",
        description="tensorboard writes the same numbers and the stills for TensorBoard as well (an optional "
        "package); log.jsonl is always written",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$",
        description="auto is CUDA where it is there, otherwise the CPU",
        json_schema_extra={"allowed": "auto, cpu, cuda or cuda:N"},
    )
    rasteriser: Literal["auto", "nvdiffrast", "triton", "numba", "reference"] = Field(
        "auto",
        description="auto is triton on CUDA, where it cannot run nvdiffrast; numba on the CPU; "
        "and the reference where these cannot run",
    )

    @property
    def output_folder(self) -> Path:
        """Where this run writes; relative paths are relative to the current directory."""
        return output_folder(self.out_dir)

    @property
    def mesh_path(self) -> Path:
        """The mesh that this run writes at its end."""
        return self.output_folder / MESH_FILE

    @property
    def panels(self) -> tuple[str, ...]:
        """The names of the layers that `display` asks for."""
        return tuple(LATLONG if isinstance(panel, LightPanel) else panel.bsdf for panel in self.display)

    @property
    def traits(self) -> Mode:
        """Labels and defaults of the mode."""
        return MODES[self.mode]

    @property
    def effective_learning_rate(self) -> float:
        """The learning rate, or the mode's default where it is null."""
        return self.learning_rate or self.traits.learning_rate
