"""Images for the classifier: normals and shaded surfaces, from cameras in all directions.

Normals are rotated with the view, R_y(azimuth) n, as if the object were rotated in front of a fixed camera.
With world-space normals, the network could infer the azimuth and thus the visible side of any object.

In shapes, B is the number of views, S the pixels per side and N the number of surface points.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dataset.cameras import CameraConfig
from render.camera import Cameras, orbit, rotate_y
from render.gbuffer import SurfacePoints, rasterize_gbuffer
from render.mesh import Mesh
from render.raster.interface import Rasteriser
from render.shade.brdf import linear_to_srgb, shade
from render.shade.light import LightConfig, camera_rotation
from render.shade.prefilter import PrefilteredLight

IMAGE_SIZE = 96
# Supersampling factor, which avoids aliasing of fine textures.
SUPERSAMPLE = 2
VIEWS, ELEVATION_DEGREES, FOVY_DEGREES = 8, 18.0, 36.0
# Distribution of the random cameras for training images. The random cameras are near the evaluation cameras.
TRAINING_CAMERAS = CameraConfig(
    camera_random_jitter=0.12,
    fovy_range=(32.0, 41.0),
    elevation_range=(8.0, 30.0),
    azimuth_spread="batch",
)

# The default environment. A higher resolution makes no visible difference at this image size.
LIGHT = LightConfig(env_resolution=128)

Paint = Callable[[SurfacePoints], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class RenderedViews:
    """Images of one surface.

    normal: rotated normals in [−1, 1], background 0. mask: in [0, 1]. shaded: sRGB in [0, 1] on black, None
    for a surface without material.
    """

    normal: Float[Tensor, "B 3 S S"]
    mask: Float[Tensor, "B 1 S S"]
    shaded: Float[Tensor, "B 3 S S"] | None

    def downsample(self, times: int) -> "RenderedViews":
        """Return smaller images, in which each pixel is the mean over a block of times × times pixels."""

        def pool(image: Tensor | None) -> Tensor | None:
            return None if image is None else F.avg_pool2d(image, times)

        return RenderedViews(pool(self.normal), pool(self.mask), pool(self.shaded))


def evaluation_cameras(side: int) -> Cameras:
    """Return VIEWS cameras at equal azimuth steps. Camera 0 shows the front, camera VIEWS / 2 the back."""
    return orbit(VIEWS, (side, side), ELEVATION_DEGREES, FOVY_DEGREES)


def azimuths(views: Cameras) -> Float[Tensor, " B"]:
    """Return the azimuths in radians, from the first row (cos, 0, sin) of R_x(elevation) R_y(azimuth)."""
    right = camera_rotation(views.world_to_clip)[:, 0]
    return torch.atan2(right[:, 2], right[:, 0])


@torch.no_grad()
def render_views(
    mesh: Mesh,
    views: Cameras,
    rasteriser: Rasteriser,
    light: PrefilteredLight,
    paint: Paint | None = None,
    light_yaw: Float[Tensor, " B"] | None = None,
) -> RenderedViews:
    """Render the surface from the given cameras.

    paint returns (kd linear albedo [N,3], ks [N,3], world-space unit shading normal [N,3]) at the visible
    points. light_yaw rotates the environment about +y by this many radians in each view.
    """
    points = rasterize_gbuffer(mesh, views, rasteriser)
    rotated = _rotated(rotate_y(azimuths(views)), points, points.normal)
    channels = [points.scatter(rotated), points.mask()]
    if paint is not None:
        kd, ks, normal = paint(points)
        to_viewer = points.to_viewer
        if light_yaw is not None:
            # Rotating the light is equivalent to rotating normals and view directions by the inverse
            # rotation.
            turn = rotate_y(-light_yaw)
            normal, to_viewer = _rotated(turn, points, normal), _rotated(turn, points, to_viewer)
        colour = linear_to_srgb(shade(kd, ks, normal, to_viewer, light)).clamp(0, 1)
        channels.append(points.scatter(colour))
    image = rasteriser.antialias(torch.cat(channels, -1), points.rast, points.clip, mesh.faces)
    image = image.permute(0, 3, 1, 2)
    return RenderedViews(image[:, :3], image[:, 3:4].clamp(0, 1), image[:, 4:] if paint is not None else None)


def _rotated(
    rotation: Float[Tensor, "B 3 3"], points: SurfacePoints, vectors: Float[Tensor, "N 3"]
) -> Float[Tensor, "N 3"]:
    return (rotation[points.view_of_point] @ vectors[:, :, None])[:, :, 0]


def back_view() -> int:
    """Return the index of the evaluation view that shows the back. The front has index 0."""
    return VIEWS // 2


def degrees(view: int) -> float:
    """Return the azimuth in degrees of an evaluation view."""
    return math.degrees(2 * math.pi * view / VIEWS)
