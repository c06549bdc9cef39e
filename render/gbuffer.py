"""What every shader starts from: which surface point each pixel sees.

Only covered pixels are kept, as one list of N points; `place` puts their colours back into B images.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from render.camera import Cameras, transform_points
from render.mesh import Mesh, face_cross
from render.raster.contract import Rasteriser
from render.shade.normal import shading_normal


@dataclass(frozen=True)
class SurfacePoints:
    """The N covered pixels of B images.

    clip [B,V,4] and rast [B,H,W,4] are the rasteriser's; covered [B,H,W]; view_of_point [N] tells which image
    a point is seen in. position, normal (smooth, bent and turned to the viewer, unit) and to_viewer (unit)
    are in world space.
    """

    clip: Float[Tensor, "B V 4"]
    rast: Float[Tensor, "B H W 4"]
    covered: Bool[Tensor, "B H W"]
    view_of_point: Int[Tensor, " N"]
    position: Float[Tensor, "N 3"]
    normal: Float[Tensor, "N 3"]
    to_viewer: Float[Tensor, "N 3"]

    def place(self, values: Float[Tensor, "N C"], background: float = 0.0) -> Float[Tensor, "B H W C"]:
        """The points' values in their pixels, `background` elsewhere."""
        image = values.new_full((*self.covered.shape, values.shape[-1]), background)
        image[self.covered] = values
        return image

    def mask(self) -> Float[Tensor, "B H W 1"]:
        return self.covered[..., None].to(self.position.dtype)


def trace(mesh: Mesh, views: Cameras, rasteriser: Rasteriser) -> SurfacePoints:
    """Rasterise the mesh and gather what its covered pixels see; differentiable with respect to v_pos."""
    clip = transform_points(views.world_to_clip, mesh.v_pos)
    rast = rasteriser.rasterize(clip, mesh.faces, views.resolution)
    covered = rast[..., 3] > 0
    vertex_values = torch.cat([mesh.v_pos, mesh.v_nrm], dim=-1)
    position, smooth = rasteriser.interpolate(vertex_values, rast, mesh.faces)[covered].split(3, dim=-1)
    face = rast[..., 3][covered].long() - 1
    geometric = torch.nn.functional.normalize(face_cross(mesh.v_pos, mesh.faces), dim=-1)[face]
    view_of_point = covered.nonzero()[:, 0]
    to_viewer = torch.nn.functional.normalize(views.position[view_of_point] - position, dim=-1)
    normal = shading_normal(torch.nn.functional.normalize(smooth, dim=-1), geometric, to_viewer)
    return SurfacePoints(clip, rast, covered, view_of_point, position, normal, to_viewer)
