"""Transfer of a painted material to another mesh of the same surface, with fewer faces or other uv.

A point of the new mesh gets the material at the nearest point of the painted mesh. The normal at this point
is converted to world space and then to the tangent space of the new mesh. The new normals therefore contain
the relief that a decimated mesh has lost.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.mesh import Mesh
from render.shade.normals import bump, safe_normalize
from render.texturing.bake import SurfaceField
from render.texturing.decimate import decimate
from render.texturing.uv import ExportConfig, orthonormal_tangents, unwrap

# The texture size for unwrapping a mesh without texture coordinates before painting. It must be constant,
# because another size rotates charts and their tangents, and the learned normals depend on the tangents.
PAINTING_RES = (1024, 1024)


def prepare_export(
    painted: Mesh, field: SurfaceField, config: ExportConfig, own_uv: bool
) -> tuple[Mesh, SurfaceField]:
    """Return the mesh into which the field is baked, and the field over this mesh.

    The mesh is `painted` in most cases. It is another mesh if export_faces requests fewer faces, or if the
    program unwrapped `painted` (own_uv is False) for another texture size.
    """
    fewer = 0 < config.export_faces < len(painted.faces)
    if not fewer and (own_uv or config.texture_res == PAINTING_RES):
        return painted, field
    target = decimate(painted, config.export_faces) if fewer else painted
    target = unwrap(target, config.unwrap, config.texture_res, config.uv_padding_block)
    return target, transfer_field(painted, target, field)


def transfer_field(painted: Mesh, target: Mesh, field: SurfaceField) -> SurfaceField:
    """Return the `field` over `painted` as a field over `target`. Both meshes need tangents."""
    frame_of_painted, frame_of_target = frame_finder(painted), frame_finder(target)

    def transferred(points: Float[Tensor, "N 3"]) -> dict[str, Float[Tensor, "N C"]]:
        nearest, normal, tangent = frame_of_painted(points)
        values = field(nearest)
        if "normal" not in values:
            return values
        world = bump(normal, tangent, values["normal"])
        _, up, along = frame_of_target(points)
        return {**values, "normal": tangent_space(world, up, along)}

    return transferred


def tangent_space(
    world: Float[Tensor, "N 3"], normal: Float[Tensor, "N 3"], tangent: Float[Tensor, "N 3"]
) -> Float[Tensor, "N 3"]:
    """Convert unit world-space normals to the tangent space with the unit vectors `normal` and `tangent`. The
    result has z ≥ 0.
    """
    across = torch.linalg.cross(normal, tangent, dim=-1)
    local = torch.stack([(world * axis).sum(-1) for axis in (tangent, across, normal)], -1)
    # z is clamped at 0, because a normal map cannot represent normals that point into the surface.
    return safe_normalize(torch.cat([local[:, :2], local[:, 2:].clamp(min=0)], -1))


def frame_finder(mesh: Mesh) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return a function from points [N,3] to the nearest points [N,3] of the mesh, and to the unit smooth
    normals and unit tangents at these nearest points.
    """
    find = nearest_finder(mesh)

    def frame(points: Float[Tensor, "N 3"]) -> tuple[Tensor, Tensor, Tensor]:
        nearest, row, weight = find(points)
        return nearest, *frame_at(mesh, row, weight)

    return frame


def frame_at(
    mesh: Mesh, face: Int[Tensor, " N"], weights: Float[Tensor, "N 3"]
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Return the unit smooth normals and unit tangents at points given by faces and barycentric weights."""
    assert mesh.tangents is not None and mesh.uv_faces is not None, "the mesh has no tangents"
    weight = weights[..., None]
    normal = safe_normalize((mesh.v_nrm[mesh.faces[face]] * weight).sum(1))
    tangent = orthonormal_tangents((mesh.tangents[mesh.uv_faces[face]] * weight).sum(1), normal)
    return normal, tangent


def nearest_finder(mesh: Mesh) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return a function from points [N,3] to nearest points [N,3] of the mesh, faces [N] and weights [N,3].

    The weights are barycentric. The search tree is built once. libigl runs queries in parallel.
    """
    import igl

    positions = np.asfortranarray(mesh.v_pos.detach().cpu().numpy(), dtype=np.float64)
    triangles = np.asfortranarray(mesh.faces.cpu().numpy(), dtype=np.int64)
    tree = igl.AABB()
    tree.init(positions, triangles)
    device, dtype = mesh.v_pos.device, mesh.v_pos.dtype

    def find(points: Float[Tensor, "N 3"]) -> tuple[Tensor, Tensor, Tensor]:
        queries = np.asfortranarray(points.detach().cpu().numpy(), dtype=np.float64)
        _, face, nearest = tree.squared_distance(positions, triangles, queries)
        corners = [np.asfortranarray(positions[triangles[face, corner]]) for corner in range(3)]
        weights = igl.barycentric_coordinates(np.asfortranarray(nearest), *corners)
        # If a face has no area, the weights are not finite and are replaced by those of a corner.
        weights = np.where(np.isfinite(weights).all(1, keepdims=True), weights, [1.0, 0.0, 0.0])
        row = torch.from_numpy(np.array(face, dtype=np.int64)).to(device)
        place = torch.from_numpy(np.array(nearest)).to(device, dtype)
        return place, row, torch.from_numpy(weights).to(device, dtype)

    return find
