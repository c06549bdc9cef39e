"""The environment light: config section, loading of the file, and module."""

import logging
import os
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from render.image_io.hdr import read_latlong
from render.read_errors import printable
from render.shade.cubemap import latlong_to_cube
from render.shade.prefilter import PrefilteredLight, prefilter

logger = logging.getLogger(__name__)

MAP_FOLDER = Path(__file__).resolve().parents[2] / "data" / "irrmaps"
DEFAULT_MAP = MAP_FOLDER / "overcast_city.hdr"
# The factor on the default map if it replaces a missing map of data/irrmaps. Published configs use an open
# sky with a low sun and env_scale 2. On an upward surface, irradiance / π is 0.56 and 0.70 under the sunrise
# and sunset skies of Blender 3.4 (Poly Haven). The value under the default map is 1.34, so the factor 0.5
# gives a similar value (0.67).
REPLACEMENT_SCALE = 0.5
# The lower bound of the radiance of a learned light. It is needed because the light is stored as a logarithm.
DARKEST = 1e-4
LEARNING_LOOKUPS = 2**19
# The accepted ratios of width to height. A latitude-longitude map has the ratio 2. Other layouts have other
# ratios and are rejected.
LATLONG_RATIOS = (1.9, 2.1)
OTHER_LAYOUTS = {
    1.0: "a square picture is an angular map or a mirror ball",
    4 / 3: "a picture of 4:3 is a cube cross",
    3 / 4: "a picture of 3:4 is a cube cross",
    6.0: "a picture of 6:1 is a cube strip",
    1 / 6: "a picture of 1:6 is a cube strip",
    4.0: "a picture of 4:1 shows half of the sky",
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LightConfig:
    """Config keys of the environment light."""

    envmap: str | None = Field(
        None,
        description="latitude-longitude map, .hdr or .exr; null: an overcast sky in data/irrmaps",
    )
    env_scale: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="factor on the environment's radiance"
    )
    relight: str | None = Field(None, description="second environment map, for the picture layer relight")
    learn_light: bool = Field(False, description="optimise the environment together with the material")
    camera_space_light: bool = Field(False, description="the environment turns with the camera")
    env_resolution: Literal[64, 128, 256, 512, 1024] = Field(
        512, description="texels along a face of the environment's cube map"
    )


class EnvironmentLight(nn.Module):
    """The environment light as a cube map. It is fixed or learned.

    The prefiltered tables of a fixed light are computed once. The tables of a learned light are computed in
    every call of `prefiltered`, with fewer samples. This is slow on a CPU, where env_resolution 64 or 128 is
    recommended for a learned light. A learned light is optimised as the logarithm of radiance, so radiance
    stays positive and updates are relative.
    """

    def __init__(self, cube: Float[Tensor, "6 R R 3"], learn: bool = False):
        super().__init__()
        self.log_radiance = nn.Parameter(cube.clamp_min(DARKEST).log()) if learn else None
        # The checkpoint does not contain a fixed light, because a resumed run loads it from its file.
        self.register_buffer("fixed", None if learn else cube, persistent=False)
        self._prefiltered: PrefilteredLight | None = None

    @property
    def cube(self) -> Float[Tensor, "6 R R 3"]:
        """Return the linear radiance including the factor env_scale."""
        return self.fixed if self.log_radiance is None else self.log_radiance.exp()

    def prefiltered(self) -> PrefilteredLight:
        """Return the tables for `shade`. They are differentiable if the light is learned."""
        if self.log_radiance is not None:
            return prefilter(self.cube, LEARNING_LOOKUPS)
        if self._prefiltered is None or self._prefiltered.table.device != self.fixed.device:
            self._prefiltered = prefilter(self.fixed)
        return self._prefiltered


def load_environment(config: LightConfig) -> EnvironmentLight:
    """Return the light that the config describes. Raises the errors of `read_environment_map`."""
    cube = load_cube(config.envmap, config.env_resolution, config.env_scale)
    return EnvironmentLight(cube, config.learn_light)


def load_cube(path: str | None, resolution: int, scale: float = 1.0) -> Float[Tensor, "6 R R 3"]:
    """Return the linear radiance of a lat-long file, multiplied by `scale`, as a cube map. The path None
    selects the default map.
    """
    return latlong_to_cube(read_environment_map(path), resolution) * scale


def read_environment_map(path: str | None) -> Float[Tensor, "H W 3"]:
    """Return the linear radiance of the map at `path`. None selects the default map.

    If the default map replaces a missing published map, the radiance is multiplied by REPLACEMENT_SCALE.

    Raises:
        FileNotFoundError, ValueError: the errors of `read_latlong`.
        ValueError: if the image is not about twice as wide as high.
    """
    file, factor = _find_map(path)
    image = read_latlong(file)
    height, width = image.shape[:2]
    ratio = width / height
    if not LATLONG_RATIOS[0] <= ratio <= LATLONG_RATIOS[1]:
        layout = next((f" ({text})" for r, text in OTHER_LAYOUTS.items() if abs(ratio / r - 1) < 0.02), "")
        raise ValueError(
            f"environment map {printable(str(file))}: it is {width} x {height} pixels, and a "
            f"latitude-longitude map is twice as wide as high{layout}; "
            "convert it to a latitude-longitude (equirectangular) map first, for example with cmft or HDRShop"
        )
    return image * factor


def resolve_map(path: str | None) -> Path:
    """Return the path of the map file to read.

    Published configs refer to maps in data/irrmaps that are not included in this repository. For such a map,
    the default map is returned and a warning is logged. Any other path is returned unchanged, even if the
    file does not exist.
    """
    return _find_map(path)[0]


def _find_map(path: str | None) -> tuple[Path, float]:
    """Return the path of the map file to read, and the factor on its radiance."""
    if path is None:
        _log_once(logging.INFO, f"light: no envmap given, using the default {DEFAULT_MAP.name}")
        return DEFAULT_MAP, 1.0
    given = Path(path)
    # os.path.exists is used because it returns False for invalid paths (with a NUL character), for which
    # Path's methods may raise an error.
    here = os.path.exists(given.parent) and given.parent.resolve() == MAP_FOLDER
    if not os.path.exists(given) and (here or given.parent == Path("data/irrmaps")):
        shipped = MAP_FOLDER / given.name
        if os.path.exists(shipped):
            return shipped, 1.0
        _log_once(
            logging.WARNING,
            f"light: {path} is not shipped, using the default {DEFAULT_MAP.name} with its radiance times "
            f"{REPLACEMENT_SCALE}, which matches the irradiance of an open sky",
        )
        return DEFAULT_MAP, REPLACEMENT_SCALE
    return given, 1.0


@cache
def _log_once(level: int, message: str) -> None:
    logger.log(level, message)


def camera_rotation(world_to_clip: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 3 3"]:
    """Return the rotations from world axes to camera axes (x right, y up, −z forward).

    world_to_clip: matrices of render.camera. The x, y and w rows are multiples of the right, down and forward
    axes of the camera.
    """
    right, down, forward = world_to_clip[:, 0, :3], world_to_clip[:, 1, :3], world_to_clip[:, 3, :3]
    return torch.nn.functional.normalize(torch.stack([right, -down, -forward], 1), dim=-1)
