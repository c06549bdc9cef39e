"""Control images for ControlNets (arXiv 2302.05543) that show the depth or the normals of a mesh.

Depth images contain inverse depth, like the output of MiDaS, because the public ControlNets were trained with
this output. Near points are bright, and the background is black. Normal images contain camera-space normals
with x to the right, y up and z towards the viewer, encoded as n · 0.5 + 0.5. In the kind "normal_bae", x
points to the left, which is the convention of ControlNet 1.1. The normal of the background points to the
viewer. Outlines are antialiased.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from render.camera import Cameras
from render.gbuffer import SurfacePoints
from render.image_io.image import encode_normal
from render.mesh import Mesh
from render.raster.interface import Rasteriser
from render.shade.light import camera_rotation

ControlKind = Literal["depth", "normal", "normal_bae"]


@torch.no_grad()
def control_image(
    kind: ControlKind, points: SurfacePoints, cameras: Cameras, mesh: Mesh, rasteriser: Rasteriser
) -> Float[Tensor, "B H W 3"]:
    """Return the control image of each view, with values in [0, 1].

    points: the rasterised mesh, seen from `cameras`.
    """
    if kind == "depth":
        image = points.scatter(depth_values(points, cameras))
    else:
        normal = camera_normals(points, cameras)
        if kind == "normal_bae":
            normal = torch.cat([-normal[:, :1], normal[:, 1:]], dim=1)
        facing = torch.nn.functional.pad(points.mask() - 1, (2, 0))
        image = encode_normal(points.scatter(normal) - facing)
    return rasteriser.antialias(image, points.rast, points.clip, mesh.faces).clamp(0, 1)


def depth_values(points: SurfacePoints, cameras: Cameras) -> Float[Tensor, "N 3"]:
    """Return the inverse depth of each point, scaled to 1 at the nearest vertex of a view and 0 at the
    farthest.

    The farthest vertex is usually hidden, so the visible points are brighter than the background. All points
    are 1 if all vertices have the same depth.
    """
    # Clip-space w is the distance along the viewing direction, so 1 / w is the inverse depth.
    inverse = 1 / points.clip[..., 3]
    near, far = inverse.amax(1)[points.view_of_point], inverse.amin(1)[points.view_of_point]
    forward = cameras.world_to_clip[points.view_of_point, 3]
    depth = (forward[:, :3] * points.position).sum(-1) + forward[:, 3]
    span = (near - far).clamp(min=torch.finfo(near.dtype).eps)
    return (1 - (near - 1 / depth) / span).clamp(0, 1)[:, None].expand(-1, 3)


def camera_normals(points: SurfacePoints, cameras: Cameras) -> Float[Tensor, "N 3"]:
    """Return the normal of each point in camera axes: x to the right, y up, z backward."""
    rotation = camera_rotation(cameras.world_to_clip)[points.view_of_point]
    return (rotation @ points.normal[:, :, None])[:, :, 0]
