"""Cameras: projection, poses and batches of views.

World space is right-handed with +y up. The object is at the origin and its front faces +z. The camera looks
along its own −z axis. Clip space is that of OpenGL (−w ≤ x, y, z ≤ w) with flipped y, so y/w = −1 is the top
of image row 0.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.async_copy import to_device_async
from render.kernels.available import triton_available


@dataclass(frozen=True)
class Cameras:
    """B views of one scene.

    world_to_clip [B,4,4]: matrices for column vectors. position [B,3]: the camera centres in world space.
    normal_rotation [B,3,3]: the rotation of the rendered normals, random in the coarse phase and otherwise
    the identity. view_index [B]: 0 for front, 1 for side, 2 for back. resolution: (height, width) in pixels.
    """

    world_to_clip: Float[Tensor, "B 4 4"]
    position: Float[Tensor, "B 3"]
    normal_rotation: Float[Tensor, "B 3 3"]
    view_index: Int[Tensor, " B"]
    resolution: tuple[int, int]

    def select(self, some: slice) -> "Cameras":
        """Return the views in a slice of the batch."""
        return Cameras(
            self.world_to_clip[some],
            self.position[some],
            self.normal_rotation[some],
            self.view_index[some],
            self.resolution,
        )

    def to(self, device: torch.device | str) -> "Cameras":
        tensors = self.world_to_clip, self.position, self.normal_rotation, self.view_index
        return Cameras(*to_device_async(tensors, device), self.resolution)


def rotate_x(angle: Float[Tensor, " B"]) -> Float[Tensor, "B 3 3"]:
    """Return the rotation about +x by `angle` radians."""
    s, c = angle.sin(), angle.cos()
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    return torch.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).unflatten(-1, (3, 3))


def rotate_y(angle: Float[Tensor, " B"]) -> Float[Tensor, "B 3 3"]:
    """Return the rotation about +y by `angle` radians."""
    s, c = angle.sin(), angle.cos()
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    return torch.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).unflatten(-1, (3, 3))


def perspective(fovy: Float[Tensor, " B"], aspect: float, near: float, far: float) -> Float[Tensor, "B 4 4"]:
    """Return perspective projections.

    fovy: the vertical field of view in radians. aspect: width / height.
    """
    focal = 1.0 / torch.tan(fovy / 2)
    projection = torch.zeros(len(fovy), 4, 4, dtype=fovy.dtype, device=fovy.device)
    projection[:, 0, 0] = focal / aspect
    projection[:, 1, 1] = -focal
    projection[:, 2, 2] = -(far + near) / (far - near)
    projection[:, 2, 3] = -2 * far * near / (far - near)
    projection[:, 3, 2] = -1
    return projection


def look_at_origin(
    azimuth: Float[Tensor, " B"],
    elevation: Float[Tensor, " B"],
    fovy: Float[Tensor, " B"],
    resolution: tuple[int, int],
    *,
    shift: Float[Tensor, "B 2"] | None = None,
    normal_rotation: Float[Tensor, "B 3 3"] | None = None,
    view_index: Int[Tensor, " B"] | None = None,
    radius: float = 3.0,
    near_far: tuple[float, float] = (1.0, 50.0),
) -> Cameras:
    """Return cameras on a sphere around the origin. All angles are in radians.

    The view matrix is T(shift, −radius) · R_x(elevation) · R_y(azimuth). At azimuth 0, the camera is on +z
    and sees the front of the object. R_y(azimuth) rotates the object, so the camera is on −x at azimuth 90°.
    At a positive elevation, the camera is above the object. shift moves the object along the camera's x and y
    axes (in world units).
    """
    count = len(azimuth)
    rotation = rotate_x(elevation) @ rotate_y(azimuth)
    translation = azimuth.new_zeros(count, 3)
    translation[:, 2] = -radius
    if shift is not None:
        translation[:, :2] = shift
    view = torch.eye(4, dtype=azimuth.dtype, device=azimuth.device).repeat(count, 1, 1)
    view[:, :3, :3] = rotation
    view[:, :3, 3] = translation
    projection = perspective(fovy, resolution[1] / resolution[0], *near_far)
    if normal_rotation is None:
        normal_rotation = torch.eye(3, dtype=azimuth.dtype, device=azimuth.device).repeat(count, 1, 1)
    if view_index is None:
        view_index = torch.zeros(count, dtype=torch.long, device=azimuth.device)
    return Cameras(
        world_to_clip=projection @ view,
        position=-(rotation.transpose(1, 2) @ translation[:, :, None])[:, :, 0],
        normal_rotation=normal_rotation,
        view_index=view_index,
        resolution=resolution,
    )


def orbit(
    count: int, resolution: tuple[int, int], elevation_degrees: float = 20.0, fovy_degrees: float = 45.0
) -> Cameras:
    """Return `count` views at equal azimuth steps around the object. The first view shows the front."""
    azimuth = torch.arange(count, dtype=torch.float32) * (2 * math.pi / count)
    return look_at_origin(
        azimuth,
        torch.full_like(azimuth, math.radians(elevation_degrees)),
        torch.full_like(azimuth, math.radians(fovy_degrees)),
        resolution,
    )


def transform_points(
    matrices: Float[Tensor, "B 4 4"], points: Float[Tensor, "V 3"]
) -> Float[Tensor, "B V 4"]:
    """Transform world points to homogeneous clip-space positions by each of B matrices."""
    if triton_available(matrices, points) and not matrices.requires_grad:
        from render.kernels import transform_triton

        return transform_triton.transform_points(matrices, points)
    return transform_points_torch(matrices, points)


def transform_points_torch(
    matrices: Float[Tensor, "B 4 4"], points: Float[Tensor, "V 3"]
) -> Float[Tensor, "B V 4"]:
    many = points.expand(len(matrices), -1, -1)
    return torch.baddbmm(matrices[:, None, :, 3], many, matrices[:, :, :3].transpose(1, 2))
