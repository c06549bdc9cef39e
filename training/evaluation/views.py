"""What the classifier sees of a surface: images of its normals and of its colours, from around it.

Normals are turned with the view: R_y(azimuth) n, as if the object had been turned in front of a camera that
stays. World-space normals would give the azimuth away, and with it front and back, whatever is there to see.

Legend: B views, S pixels a side, N surface points.
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
# Rendered so many times finer and averaged, so that a fine texture does not flicker.
SUPERSAMPLE = 2
VIEWS, ELEVATION_DEGREES, FOVY_DEGREES = 8, 18.0, 36.0
# What the network learns from: around the cameras above.
TRAINING_CAMERAS = CameraConfig(
    camera_random_jitter=0.12,
    fovy_range=(32.0, 41.0),
    elevation_range=(8.0, 30.0),
    azimuth_spread="batch",
)

# The default environment; finer than this shows at no size of image here.
LIGHT = LightConfig(env_resolution=128)

Paint = Callable[[SurfacePoints], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class RenderedViews:
    """Images of one surface: turned normals in [−1, 1] on 0, mask in [0, 1], shaded sRGB in [0, 1] on black
    (None for a surface without paint)."""

    normal: Float[Tensor, "B 3 S S"]
    mask: Float[Tensor, "B 1 S S"]
    shaded: Float[Tensor, "B 3 S S"] | None

    def downsample(self, times: int) -> "RenderedViews":
        """Averaged over blocks of times × times pixels."""

        def pool(image: Tensor | None) -> Tensor | None:
            return None if image is None else F.avg_pool2d(image, times)

        return RenderedViews(pool(self.normal), pool(self.mask), pool(self.shaded))


def evaluation_cameras(side: int) -> Cameras:
    """VIEWS azimuths a step apart, the first from the front, so that the middle one is from the back."""
    return orbit(VIEWS, (side, side), ELEVATION_DEGREES, FOVY_DEGREES)


def azimuths(views: Cameras) -> Float[Tensor, " B"]:
    """Radians, read off the cameras' axes: R_x(elevation) R_y(azimuth) has the row (cos, 0, sin)."""
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
    """The surface from these views.

    paint answers (kd linear albedo [N,3], ks [N,3], world-space unit normal to shade with [N,3]) at the
    points that are seen; light_yaw turns the environment about +y by so many radians in each view.
    """
    points = rasterize_gbuffer(mesh, views, rasteriser)
    turned = _rotated(rotate_y(azimuths(views)), points, points.normal)
    channels = [points.scatter(turned), points.mask()]
    if paint is not None:
        kd, ks, normal = paint(points)
        to_viewer = points.to_viewer
        if light_yaw is not None:
            # Turning the light one way is turning everything else the other way.
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
    """The number of the judging view from the back; 0 is the front."""
    return VIEWS // 2


def degrees(view: int) -> float:
    """Azimuth of a judging view."""
    return math.degrees(2 * math.pi * view / VIEWS)
