"""The G-buffer. It contains position, normal and view direction of the surface point at each covered pixel.

Only the N covered pixels of a batch are stored, as one list. `scatter` writes the values of these pixels to B
images.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.async_copy import AsyncCopy
from render.camera import Cameras, transform_points
from render.kernels.available import triton_available
from render.mesh import Mesh, face_cross
from render.raster.interface import Rasteriser
from render.shade.normals import safe_normalize, shading_normal


@dataclass(frozen=True)
class Fragments:
    """The rasterised mesh in B images.

    clip [B,V,4] and rast [B,H,W,4] are described in raster/interface.py. values [B,H,W,6]: the interpolated
    positions and smooth normals, 0 in the background.
    """

    clip: Float[Tensor, "B V 4"]
    rast: Float[Tensor, "B H W 4"]
    values: Float[Tensor, "B H W 6"]

    def covered(self) -> Int[Tensor, " N"]:
        """Return the flat indices of the covered pixels over (B, H, W), in ascending order.

        On a GPU, the host waits for the number of covered pixels.
        """
        return self.rast.detach()[..., 3].flatten().nonzero()[:, 0]

    def mask(self) -> Float[Tensor, "B H W 1"]:
        # rast stores face index + 1, and 0 in the background.
        return self.rast.detach()[..., 3:].clamp(max=1)


class PendingPixels:
    """The result of `Fragments.covered`, computed without waiting for the GPU."""

    def __init__(self, fragments: Fragments) -> None:
        face = fragments.rast.detach()[..., 3].flatten()
        self._count = AsyncCopy(torch.count_nonzero(face))
        # The list has space for all pixels. Its end is filled with −1.
        self._pixels = torch.nonzero_static(face, size=len(face))[:, 0]

    def indices(self) -> Int[Tensor, " N"]:
        """Wait for the number of covered pixels, and return their flat indices."""
        return self._pixels[: int(self._count.read())]


@dataclass(frozen=True)
class SurfacePoints(Fragments):
    """The N covered pixels of B images.

    pixel [N]: flat pixel indices over (B, H, W). position [N,3], normal [N,3] (unit, from `shading_normal`,
    None if not requested) and to_viewer [N,3] (unit) are in world space.
    """

    pixel: Int[Tensor, " N"]
    position: Float[Tensor, "N 3"]
    normal: Float[Tensor, "N 3"] | None
    to_viewer: Float[Tensor, "N 3"]

    @property
    def view_of_point(self) -> Int[Tensor, " N"]:
        """Return for each point the batch index of the image that contains it."""
        return self.pixel // (self.rast.shape[1] * self.rast.shape[2])

    def gather(self, image: Float[Tensor, "B H W C"]) -> Float[Tensor, "N C"]:
        """Return the values of an image at the points."""
        return image.flatten(0, 2).index_select(0, self.pixel)

    def scatter(self, values: Float[Tensor, "N C"], background: float = 0.0) -> Float[Tensor, "B H W C"]:
        """Return images that have the values of the points at their pixels and `background` elsewhere."""
        shape = *self.rast.shape[:3], values.shape[-1]
        return values.new_full(shape, background).flatten(0, 2).index_copy_(0, self.pixel, values).view(shape)

    def smooth_normal(self) -> Float[Tensor, "N 3"]:
        """Return the interpolated unit vertex normals. They point outward and are not corrected by
        `shading_normal`.
        """
        return safe_normalize(self.gather(self.values[..., 3:]))

    def face_normal(self, mesh: Mesh) -> Float[Tensor, "N 3"]:
        """Return the outward unit normal of the face at each point."""
        # rast stores face index + 1.
        face = self.gather(self.rast.detach()[..., 3:])[:, 0].long() - 1
        return safe_normalize(face_cross(mesh.v_pos, mesh.faces)).index_select(0, face)

    def shading_normal(self, mesh: Mesh) -> Float[Tensor, "N 3"]:
        """Return the value of the attribute `normal` for points that were created without normals."""
        return shading_normal(self.smooth_normal(), self.face_normal(mesh), self.to_viewer)


def rasterize(mesh: Mesh, views: Cameras, rasteriser: Rasteriser) -> Fragments:
    """Rasterise the mesh. The result is differentiable with respect to v_pos."""
    clip = transform_points(views.world_to_clip, mesh.v_pos)
    rast = rasteriser.rasterize(clip, mesh.faces, views.resolution)
    values = rasteriser.interpolate(torch.cat([mesh.v_pos, mesh.v_nrm], dim=-1), rast, mesh.faces)
    return Fragments(clip, rast, values)


def rasterize_gbuffer(
    mesh: Mesh, views: Cameras, rasteriser: Rasteriser, normals: bool = True
) -> SurfacePoints:
    """Rasterise the mesh and return its surface points. They are differentiable with respect to v_pos.

    normals: whether to compute the shading normals. On a GPU, the host waits for the number of covered pixels
    and for nothing else.
    """
    return covered_points(rasterize(mesh, views, rasteriser), mesh, views, normals)


def covered_points(
    fragments: Fragments,
    mesh: Mesh,
    views: Cameras,
    normals: bool = True,
    pixel: Int[Tensor, " N"] | None = None,
) -> SurfacePoints:
    """Return the surface points of a rasterised mesh (see `rasterize_gbuffer`).

    pixel: the result of `fragments.covered()`, if it is already known.
    """
    rast, values = fragments.rast, fragments.values
    pixel = fragments.covered() if pixel is None else pixel
    gather = surface_points
    if triton_available(values, rast, mesh.v_pos, views.position) and not views.position.requires_grad:
        from render.kernels import gbuffer_triton

        gather = gbuffer_triton.surface_points
    found = gather(values, rast, pixel, mesh.faces, mesh.v_pos, views.position, normals=normals)
    return SurfacePoints(fragments.clip, rast, values, pixel, *found)


def surface_points(
    values: Float[Tensor, "B H W 6"],
    rast: Float[Tensor, "B H W 4"],
    pixel: Int[Tensor, " N"],
    faces: Int[Tensor, "F 3"],
    v_pos: Float[Tensor, "V 3"],
    camera: Float[Tensor, "B 3"],
    *,
    normals: bool = True,
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"] | None, Float[Tensor, "N 3"]]:
    """Return position, normal and to_viewer at the covered pixels, as defined in SurfacePoints.

    values: the interpolated positions and smooth normals. camera: the camera position of each image. normals:
    whether to compute the normal, which is None otherwise.
    """
    view = pixel // (rast.shape[1] * rast.shape[2])
    position, smooth = values.flatten(0, 2).index_select(0, pixel).split(3, dim=-1)
    to_viewer = camera.index_select(0, view) - position
    if not normals:
        return position, None, safe_normalize(to_viewer)
    number = rast.detach()[..., 3].flatten().index_select(0, pixel)
    face = face_cross(v_pos, faces).index_select(0, number.long() - 1)
    smooth, face, to_viewer = safe_normalize(torch.stack([smooth, face, to_viewer])).unbind()
    return position, shading_normal(smooth, face, to_viewer), to_viewer
