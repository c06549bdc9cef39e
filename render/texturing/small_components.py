"""Removal of small components from an exported surface."""

import logging

import numpy as np
import torch

from render.mesh import Mesh, face_cross, make_mesh

logger = logging.getLogger(__name__)


def remove_small_components(mesh: Mesh, share: float) -> Mesh:
    """Return the mesh without components whose area is below `share` (0 to 1) of the largest component's
    area.

    A component is a set of faces that are connected by shared vertices. Optimisation often produces small
    floating components. If no component is removed, the mesh is returned unchanged. Otherwise, the result has
    no texture coordinates, and the number of removed components is logged.
    """
    if share <= 0 or len(mesh.faces) == 0:
        return mesh
    try:
        import igl
    except ImportError:
        logger.warning(
            "small components are exported too: min_component_area needs libigl (pip install libigl)"
        )
        return mesh
    faces = mesh.faces.cpu().numpy().astype(np.int64)
    component = igl.vertex_components(faces)[faces[:, 0]]
    area = np.bincount(component, weights=face_cross(mesh.v_pos, mesh.faces).norm(dim=-1).cpu().numpy())
    kept = (area >= share * area.max())[component]
    if kept.all():
        return mesh
    removed = np.unique(component[~kept])
    part = 100 * area[removed].sum() / area.sum()
    logger.info(
        "removed %d small components with %.2g %% of the area (min_component_area)", len(removed), part
    )
    used, numbers = np.unique(faces[kept], return_inverse=True)
    device = mesh.v_pos.device
    rows = torch.from_numpy(used).to(device)
    return make_mesh(
        mesh.v_pos.index_select(0, rows),
        torch.from_numpy(numbers.reshape(-1, 3)).to(device, mesh.faces.dtype),
    )
