"""Draw the training cameras. They depend only on the seed, the rank, the world size and the step.

Source: Fantasia3D (arXiv 2303.13873) and its supplementary material. Angles in the config are in degrees.
They are converted to radians here.
"""

import math
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from render.camera import Cameras, look_at_origin, rotate_x, rotate_y

Elevation = Annotated[float, Ge(-90), Le(90)]
FieldOfView = Annotated[float, Gt(0), Lt(180)]


@dataclass(frozen=True)
class CameraConfig:
    """Config keys of the distribution of training cameras."""

    camera_random_jitter: float = Field(
        0.4, ge=0, description="largest shift of the object in the camera's x and y, world units"
    )
    fovy_range: tuple[FieldOfView, FieldOfView] = Field(
        (25.71, 45.0), description="vertical field of view, degrees, drawn uniformly"
    )
    elevation_range: tuple[Elevation, Elevation] = Field(
        (-10.0, 45.0), description="camera elevation, degrees above the horizon, drawn uniformly"
    )
    front_threshold: float = Field(
        45.0, ge=0, le=90, description="azimuths within this many degrees of the front are a front view"
    )
    cam_near_far: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = Field(
        (1.0, 50.0), description="near and far clipping distance, world units"
    )
    azimuth_spread: Literal["auto", "rank", "batch"] = Field(
        "auto",
        description="distribution of azimuths: rank gives each micro-batch a sector, batch gives each view "
        "of a step an interval, auto is batch for a single micro-batch, otherwise rank",
    )


def step_generator(seed: int, rank: int, step: int, stream: int = 0) -> torch.Generator:
    """Return a CPU generator that depends only on these four integers, so every step can be repeated.

    NumPy's SeedSequence hashes the integers, so adjacent seeds, ranks and steps give independent streams.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(rank, step, stream))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def azimuth_sector(rank: int, world_size: int) -> tuple[float, float]:
    """Return (centre, width) in degrees of the azimuth sector of a rank. Sector 0 is centred on the front."""
    sectors = min(world_size, 4)
    return (rank % sectors) * 360.0 / sectors, 360.0 / sectors


def draw_azimuths(
    count: int, spread: str, rank: int, world_size: int, generator: torch.Generator
) -> Float[Tensor, " count"]:
    """Draw the azimuths of one batch, in degrees.

    spread: 'rank' draws uniformly in the sector of the rank. 'batch' divides the circle into equal intervals,
    one for each view of all ranks; rank 0 has the first intervals, rank 1 the next, and so on. The first
    interval is centred on the front, and each azimuth is uniform in its interval. 'auto' is 'rank' if
    world_size > 1, otherwise 'batch'.
    """
    if spread == "auto":
        spread = "rank" if world_size > 1 else "batch"
    uniform = torch.rand(count, generator=generator)
    if spread == "rank":
        centre, width = azimuth_sector(rank, world_size)
        return centre + (uniform - 0.5) * width
    return (rank * count + torch.arange(count) + uniform - 0.5) * (360.0 / (world_size * count))


def view_indices(azimuth: Float[Tensor, " B"], front_threshold: float) -> Int[Tensor, " B"]:
    """Return the view index (0 front, 1 side, 2 back) of azimuths in degrees, for view-dependent prompts."""
    folded = (azimuth + 180.0) % 360.0 - 180.0
    front = (folded >= -front_threshold) & (folded < front_threshold)
    back = (folded >= 180.0 - front_threshold) | (folded < -180.0 + front_threshold)
    return torch.where(front, 0, torch.where(back, 2, 1))


def normal_rotations(uniform: Float[Tensor, "2 B"]) -> Float[Tensor, "B 3 3"]:
    """Return the random rotations R_x(b) · R_y(a) of the coarse phase. They apply to column vectors.

    uniform: random numbers in [0, 1). The first row gives a ~ U(0, 2π), the second row b ~ U(−π, π). The
    rotation about y is applied first, so a normal along y never gets an x component.
    """
    about_y, about_x = 2 * math.pi * uniform[0], math.pi * (2 * uniform[1] - 1)
    return rotate_x(about_x) @ rotate_y(about_y)


def around(azimuth: Float[Tensor, " G"], views: int) -> Float[Tensor, " N"]:
    """Return, for each element of `azimuth`, the azimuths of `views` equally spaced views, in degrees.

    The views of an element form a group. The first view of the element a has the azimuth a / views. The
    division makes uniform elements in [0°, 360°) give uniformly distributed groups, because a rotation by
    360° / views gives the same group.
    """
    return (azimuth[:, None] / views + torch.arange(views) * (360.0 / views)).flatten()


def sample_cameras(
    config: CameraConfig,
    count: int,
    resolution: tuple[int, int],
    generator: torch.Generator,
    *,
    rank: int = 0,
    world_size: int = 1,
    rotate_normals: bool = False,
    views: int = 1,
) -> Cameras:
    """Draw `count` training cameras. The result is on the CPU.

    rank, world_size: the batch is divided into `world_size` parts, and this call draws part `rank` (see
    `draw_azimuths`). rotate_normals: whether each view gets a rotation from `normal_rotations` instead of the
    identity. views: number of consecutive cameras in a group. The cameras of a group have equally spaced
    azimuths and the same elevation, field of view, shift and rotation of the normals. `count` is a multiple
    of `views`.
    """
    assert count % views == 0, f"{count} views are not groups of {views}"
    count //= views

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = low + (high - low) * torch.rand(count, *shape, generator=generator)
        return drawn.repeat_interleave(views, dim=0)

    azimuth = draw_azimuths(count, config.azimuth_spread, rank, world_size, generator)
    azimuth = azimuth if views == 1 else around(azimuth, views)
    elevation = uniform(*config.elevation_range)
    fovy = uniform(*config.fovy_range)
    shift = uniform(-config.camera_random_jitter, config.camera_random_jitter, 2)
    rotation = None
    if rotate_normals:
        rotation = normal_rotations(torch.rand(2, count, generator=generator)).repeat_interleave(views, dim=0)
    return look_at_origin(
        torch.deg2rad(azimuth),
        torch.deg2rad(elevation),
        torch.deg2rad(fovy),
        resolution,
        shift=shift,
        normal_rotation=rotation,
        view_index=view_indices(azimuth, config.front_threshold),
        near_far=config.cam_near_far,
    )
