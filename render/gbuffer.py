"""What every shader starts from: which surface point each pixel sees.

Only covered pixels are kept, as one list of N points; `place` puts their colours back into B images.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.camera import Cameras, transform_points
from render.kernels.available import triton_available
from render.mesh import Mesh, face_cross
from render.raster.interface import Rasteriser
from render.shade.normals import safe_normalize, shading_normal


@dataclass(frozen=True)
class SurfacePoints:
    """The N covered pixels of B images.

    clip [B,V,4] and rast [B,H,W,4] are the rasteriser's; values [B,H,W,6] are the interpolated positions and
    smooth normals; pixel [N] counts over all images. position, normal (smooth, bent and turned to the viewer,
    unit) and to_viewer (unit) are in world space.
    """

    clip: Float[Tensor, "B V 4"]
    rast: Float[Tensor, "B H W 4"]
    values: Float[Tensor, "B H W 6"]
    pixel: Int[Tensor, " N"]
    position: Float[Tensor, "N 3"]
    normal: Float[Tensor, "N 3"]
    to_viewer: Float[Tensor, "N 3"]

    @property
    def view_of_point(self) -> Int[Tensor, " N"]:
        """Which image a point is seen in."""
        return self.pixel // (self.rast.shape[1] * self.rast.shape[2])

    def gather(self, image: Float[Tensor, "B H W C"]) -> Float[Tensor, "N C"]:
        """What an image shows at the points."""
        return image.flatten(0, 2).index_select(0, self.pixel)

    def scatter(self, values: Float[Tensor, "N C"], background: float = 0.0) -> Float[Tensor, "B H W C"]:
        """The points' values in their pixels, `background` elsewhere."""
        shape = *self.rast.shape[:3], values.shape[-1]
        return values.new_full(shape, background).flatten(0, 2).index_copy_(0, self.pixel, values).view(shape)

    def smooth_normal(self) -> Float[Tensor, "N 3"]:
        """The interpolated vertex normals, unit, outward, neither bent nor turned to the viewer."""
        return safe_normalize(self.gather(self.values[..., 3:]))

    def face_normal(self, mesh: Mesh) -> Float[Tensor, "N 3"]:
        """The outward normals of the faces, unit."""
        # Faces count from 1.
        face = self.gather(self.rast.detach()[..., 3:])[:, 0].long() - 1
        return safe_normalize(face_cross(mesh.v_pos, mesh.faces)).index_select(0, face)

    def mask(self) -> Float[Tensor, "B H W 1"]:
        # Faces count from 1.
        return self.rast.detach()[..., 3:].clamp(max=1)


def rasterize_gbuffer(mesh: Mesh, views: Cameras, rasteriser: Rasteriser) -> SurfacePoints:
    """Rasterise the mesh and gather what its covered pixels see; differentiable with respect to v_pos."""
    clip = transform_points(views.world_to_clip, mesh.v_pos)
    rast = rasteriser.rasterize(clip, mesh.faces, views.resolution)
    values = rasteriser.interpolate(torch.cat([mesh.v_pos, mesh.v_nrm], dim=-1), rast, mesh.faces)
    # On a GPU the host waits here, once, for how many there are.
    pixel = rast.detach()[..., 3].flatten().nonzero()[:, 0]
    gather = surface_points
    if triton_available(values, rast, mesh.v_pos, views.position) and not views.position.requires_grad:
        from render.kernels import gbuffer_triton

        gather = gbuffer_triton.surface_points
    return SurfacePoints(
        clip, rast, values, pixel, *gather(values, rast, pixel, mesh.faces, mesh.v_pos, views.position)
    )


def surface_points(
    values: Float[Tensor, "B H W 6"],
    rast: Float[Tensor, "B H W 4"],
    pixel: Int[Tensor, " N"],
    faces: Int[Tensor, "F 3"],
    v_pos: Float[Tensor, "V 3"],
    camera: Float[Tensor, "B 3"],
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """position, normal and to_viewer at the covered pixels, as in SurfacePoints.

    values are the interpolated positions and smooth normals, camera is where each image is seen from.
    """
    number = rast.detach()[..., 3].flatten().index_select(0, pixel)
    view = pixel // (rast.shape[1] * rast.shape[2])
    position, smooth = values.flatten(0, 2).index_select(0, pixel).split(3, dim=-1)
    face = face_cross(v_pos, faces).index_select(0, number.long() - 1)
    to_viewer = camera.index_select(0, view) - position
    smooth, face, to_viewer = safe_normalize(torch.stack([smooth, face, to_viewer])).unbind()
    return position, shading_normal(smooth, face, to_viewer), to_viewer
