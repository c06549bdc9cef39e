"""Mesh decimation by quadric error metrics (Garland and Heckbert 1997) with libigl."""

import logging
import time

import numpy as np
import torch

from render.mesh import Mesh, make_mesh

logger = logging.getLogger(__name__)


def decimate(mesh: Mesh, faces: int) -> Mesh:
    """Return the surface with about `faces` triangles, without texture coordinates. The old and new numbers
    of faces are logged.

    Edge collapses keep the surface manifold, so a closed mesh stays closed. If no more edges can be
    collapsed, more than `faces` triangles remain. A mesh with at most `faces` triangles is returned
    unchanged.
    """
    assert faces > 0, "a surface needs faces"
    if len(mesh.faces) <= faces:
        logger.info("kept all %d faces; export_faces is %d", len(mesh.faces), faces)
        return mesh
    import igl

    started = time.perf_counter()
    positions = np.asfortranarray(mesh.v_pos.detach().cpu().numpy(), dtype=np.float64)
    triangles = np.asfortranarray(mesh.faces.cpu().numpy(), dtype=np.int32)
    if not igl.is_edge_manifold(triangles)[0]:
        # Edges with more than two faces are split, because libigl collapses only edges of manifolds.
        triangles, origin = igl.split_nonmanifold(triangles)[:2]
        positions = np.asfortranarray(positions[origin])
        triangles = np.asfortranarray(triangles, dtype=np.int32)
    fewer_positions, fewer, _, _ = igl.qslim(positions, triangles, faces)
    short = "" if len(fewer) <= faces else f" ({faces} requested, but no other edge can be collapsed)"
    seconds = time.perf_counter() - started
    logger.info("decimated %d faces to %d%s in %.1f s", len(mesh.faces), len(fewer), short, seconds)
    device = mesh.v_pos.device
    return make_mesh(
        torch.from_numpy(np.array(fewer_positions, dtype=np.float32)).to(device, mesh.v_pos.dtype),
        torch.from_numpy(np.array(fewer, dtype=np.int64)).to(device),
    )
