"""Images of the normals of a mesh, which the geometry mode optimises."""

import torch
from jaxtyping import Float
from torch import Tensor

from render.camera import Cameras
from render.gbuffer import Fragments, covered_points
from render.kernels.available import triton_available
from render.mesh import Mesh


def normal_image(fragments: Fragments, mesh: Mesh, views: Cameras, flip: bool) -> Float[Tensor, "B H W 4"]:
    """Return images of the shading normals (3 channels) and the mask (1 channel). The normals are rotated by
    the rotation of their view. The background is 0.

    flip: whether to negate every positive x component after the rotation. The images are differentiable with
    respect to v_pos.
    """
    tensors = fragments.values, fragments.rast, mesh.v_pos, views.position, views.normal_rotation
    if triton_available(*tensors) and not (
        views.position.requires_grad or views.normal_rotation.requires_grad
    ):
        from render.kernels import normal_image_triton

        given = fragments.values, fragments.rast, mesh.faces, mesh.v_pos, views.position
        return normal_image_triton.normal_image(*given, views.normal_rotation, flip)
    return normal_image_torch(fragments, mesh, views, flip)


def normal_image_torch(
    fragments: Fragments, mesh: Mesh, views: Cameras, flip: bool
) -> Float[Tensor, "B H W 4"]:
    """Return the result of `normal_image`, computed with torch from the covered pixels."""
    points = covered_points(fragments, mesh, views)
    normal = points.scatter(points.normal)
    # One matrix product per image rotates the normals of all pixels. The product does not change the
    # background, which is 0.
    turned = (normal.flatten(1, 2) @ views.normal_rotation.mT).view_as(normal)
    if flip:
        turned = torch.cat([-turned[..., :1].abs(), turned[..., 1:]], dim=-1)
    return torch.cat([turned, points.mask()], dim=-1)
