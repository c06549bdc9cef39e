"""Texture coordinates: unwrapping, tangents, and a test of whether a file's uv are usable for baking.

uv (0,0) is the top left corner of the image, and v increases downward as in glTF. Charts are never mirrored.
Let t be the tangent along +u and n the normal. Then b = cross(n, t) points up in the image (−v). This is the
frame of glTF's normal maps with handedness w = +1 everywhere.
"""

import importlib.util
import logging
import math
import time
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from render.mesh import Mesh
from render.raster.interface import Rasteriser
from render.texturing.projection import compiled_kernels, folded_edges, project
from render.texturing.unwrap import UnwrapError, unwrap_with

logger = logging.getLogger(__name__)

Method = Literal["auto", "xatlas", "uvunwrap", "projection"]
TextureSide = Annotated[int, Field(ge=16, le=16384)]

# The maximum number of faces for which `auto` selects xatlas. The time of xatlas grows faster than linearly:
# 6.5 s for 20,000 faces, 45 s for 61,000 and 161 s for 199,000 on 2 cores. For the same meshes, uvunwrap
# takes 0.6 s, 1.6 s and 6.9 s.
XATLAS_MAX_FACES = 20_000

# A surface is torn if it has more than this number of edges with a fold of over 60 degrees. A trained surface
# has no such edges. A surface from random weights has about 400,000 such edges. On torn surfaces, uvunwrap
# makes charts of a few faces. The margins of these charts fill one texture or several textures, and uvunwrap
# may panic. For example, uvunwrap takes 70 s and 3 textures for 1.5 million faces with 60,000 such edges on 2
# cores.
MAX_FOLDED_EDGES = 10_000


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ExportConfig:
    """Config keys for unwrapping and baking the final mesh."""

    texture_res: tuple[TextureSide, TextureSide] = Field(
        (1024, 1024), description="height and width of the baked textures in pixels"
    )
    uv_padding_block: int = Field(
        4, ge=0, le=64, description="empty texels around every chart of the UV atlas"
    )
    unwrap: Method = Field(
        "auto",
        description=f"UV unwrapper; projection takes any mesh in seconds with more seams; auto is "
        f"xatlas up to {XATLAS_MAX_FACES} faces, uvunwrap above, projection for torn surfaces",
    )
    min_component_area: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="remove components of an exported shape whose area is below this share of the "
        "largest component's; 0 keeps all",
    )
    export_faces: int = Field(
        0, ge=0, le=10**8, description="approximate number of faces of the exported mesh; 0 keeps all"
    )
    atlas: bool = Field(
        False,
        description="export a mesh with several materials with one texture atlas for all of them, instead of "
        "textures for each",
    )
    export_usd: bool = Field(
        False, description="also write mesh.usd; needs usd-core, or kaolin 0.17 or newer, which includes it"
    )


def unwrap(mesh: Mesh, method: Method, resolution: tuple[int, int], padding: int) -> Mesh:
    """Return the mesh with new uv in [0,1], uv_faces and tangents. Charts are not mirrored and do not
    overlap.

    resolution: (height, width) of the texture. padding: number of free texels around each chart. Positions
    and faces do not change. The time is bounded for any mesh. If a library fails or takes too long, a warning
    is logged and the projection is used. Raises ValueError if there are no faces.
    """
    if len(mesh.faces) == 0:
        raise ValueError("cannot unwrap a mesh without faces")
    # Positions are scaled to unit size, because xatlas uses several textures for very small meshes.
    extent = (mesh.v_pos.amax(0) - mesh.v_pos.amin(0)).max().clamp(min=1e-30)
    scaled = (mesh.v_pos.detach() - mesh.v_pos.amin(0)) / extent
    positions = np.ascontiguousarray(scaled.cpu().numpy(), dtype=np.float32)
    faces = np.ascontiguousarray(mesh.faces.cpu().numpy(), dtype=np.int64)
    start = time.perf_counter()
    uv, uv_faces, how = _unwrapped(positions, faces, method, max(resolution), padding)
    logger.info("unwrapped %d faces into %s in %.1f s", len(faces), how, time.perf_counter() - start)
    # v increases upward in the results of all methods, but downward in this program.
    uv[:, 1] = 1 - uv[:, 1]
    device = mesh.v_pos.device
    unwrapped = replace(
        mesh,
        uv=torch.from_numpy(uv.clip(0, 1)).to(device, mesh.v_pos.dtype),
        uv_faces=torch.from_numpy(uv_faces).to(device),
        tangents=None,
    )
    return replace(unwrapped, tangents=tangents(unwrapped))


def _unwrapped(
    positions: np.ndarray, faces: np.ndarray, method: Method, side: int, padding: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return uv, uv_faces and a text for the log, which contains the number of charts and the method."""
    chosen = _choose(method, positions, faces)
    if chosen != "projection":
        try:
            uv, uv_faces, charts = unwrap_with(chosen, positions, faces, side, padding)
            return uv, uv_faces, f"{charts} charts with {chosen}"
        except UnwrapError as error:
            logger.warning("%s failed on this mesh: %s; the projection is used instead", chosen, error)
    if compiled_kernels() is None:
        return *_face_grid(len(faces)), f"{len(faces)} charts, one per face"
    uv, uv_faces, charts, kept = project(positions, faces, side, padding)
    if kept < padding:
        logger.warning(
            "%d charts allow a padding of only %d texels, not %d; increase texture_res or reduce "
            "export_faces",
            charts,
            kept,
            padding,
        )
    return uv, uv_faces, f"{charts} charts with projection"


def _choose(method: Method, positions: np.ndarray, faces: np.ndarray) -> str:
    """Return the method to use. For `auto`, the mesh determines the method. If the library of the method is
    missing, the other library is used.
    """
    if method == "projection":
        return method
    preferred = method
    if method == "auto":
        preferred = "xatlas" if len(faces) <= XATLAS_MAX_FACES else "uvunwrap"
        if preferred == "uvunwrap" and folded_edges(positions, faces) > MAX_FOLDED_EDGES:
            return "projection"
    other = "uvunwrap" if preferred == "xatlas" else "xatlas"
    if importlib.util.find_spec(preferred) is not None:
        return preferred
    if importlib.util.find_spec(other) is None:
        raise ValueError("unwrapping needs xatlas or uvunwrap: pip install xatlas uvunwrap")
    logger.warning("%s is not installed; unwrapping with %s instead", preferred, other)
    return other


def _face_grid(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uv and uv_faces with two faces in each cell of a square grid, separated by a margin. This works
    for any mesh, but there is a seam at every edge.
    """
    side = math.ceil(math.sqrt((count + 1) // 2))
    lower = np.array([[0.08, 0.08], [0.82, 0.08], [0.08, 0.82]])
    corners = np.stack([lower, 1 - lower])
    face = np.arange(count)
    cell = np.stack([face // 2 % side, face // 2 // side], axis=-1)
    uv = (cell[:, None] + corners[face % 2]) / side
    return uv.reshape(-1, 2).astype(np.float32), np.arange(3 * count, dtype=np.int64).reshape(-1, 3)


def uv_areas(mesh: Mesh) -> Float[Tensor, " F"]:
    """Return the signed texture area of each face as a fraction of the image. It is negative in mirrored
    charts.
    """
    assert mesh.uv is not None and mesh.uv_faces is not None, "the mesh has no texture coordinates"
    a, b, c = (mesh.uv[mesh.uv_faces[:, corner]] for corner in range(3))
    ab, ac = b - a, c - a
    # The sign is changed, because v increases downward: a counter-clockwise face has a negative determinant.
    return (ab[:, 1] * ac[:, 0] - ab[:, 0] * ac[:, 1]) / 2


def tangents(mesh: Mesh) -> Float[Tensor, "U 3"]:
    """Return the unit tangent at each uv vertex. It is the direction of increasing u, orthogonal to the
    normal.

    Faces are weighted by size. If the faces of a uv vertex have no texture area, the tangent is an arbitrary
    direction orthogonal to the normal.
    """
    assert mesh.uv is not None and mesh.uv_faces is not None, "the mesh has no texture coordinates"
    p0, p1, p2 = (mesh.v_pos[mesh.faces[:, corner]] for corner in range(3))
    t0, t1, t2 = (mesh.uv[mesh.uv_faces[:, corner]] for corner in range(3))
    dv1, dv2 = (t1 - t0)[:, 1:], (t2 - t0)[:, 1:]
    # The first factor is ∂p/∂u · det, where p(u, v) is the linear map of the face and det is the determinant
    # of its uv edges. The product with the sign of det points along +u.
    along_u = ((p1 - p0) * dv2 - (p2 - p0) * dv1) * -torch.sign(uv_areas(mesh))[:, None]
    summed = mesh.v_pos.new_zeros(len(mesh.uv), 3)
    for corner in range(3):
        summed = summed.index_add(0, mesh.uv_faces[:, corner], along_u)
    return orthonormal_tangents(summed, uv_normals(mesh))


def uv_normals(mesh: Mesh) -> Float[Tensor, "U 3"]:
    """Return the smooth normal at each uv vertex."""
    assert mesh.uv is not None and mesh.uv_faces is not None, "the mesh has no texture coordinates"
    position_of = torch.zeros(len(mesh.uv), dtype=torch.long, device=mesh.faces.device)
    position_of[mesh.uv_faces.reshape(-1).long()] = mesh.faces.reshape(-1).long()
    return mesh.v_nrm[position_of]


def orthonormal_tangents(tangent: Float[Tensor, "N 3"], normal: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Return the normalised component of each tangent that is orthogonal to its unit normal
    (Gram-Schmidt).
    """
    flat = tangent - normal * (tangent * normal).sum(-1, keepdim=True)
    length = flat.norm(dim=-1, keepdim=True)
    usable = length > 1e-4 * tangent.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    # An unusable tangent is replaced by the cross product of the normal and the axis with the smallest normal
    # component, because this axis is never parallel to the normal.
    axis = torch.nn.functional.one_hot(normal.abs().argmin(-1), 3).to(normal.dtype)
    fallback = torch.linalg.cross(normal, axis, dim=-1)
    chosen = torch.where(usable, flat / length.clamp(min=1e-30), fallback)
    return torch.nn.functional.normalize(chosen, dim=-1)


def prepare_uv(mesh: Mesh, config: ExportConfig, rasteriser: Rasteriser) -> Mesh:
    """Return the mesh with uv and tangents for baking. If its uv are not usable, it gets new uv."""
    fault = uv_fault(mesh, rasteriser)
    if fault is None:
        return replace(mesh, tangents=tangents(mesh))
    if mesh.uv is not None:
        logger.warning("the mesh is unwrapped again: %s", fault)
    return unwrap(mesh, config.unwrap, config.texture_res, config.uv_padding_block)


def uv_fault(mesh: Mesh, rasteriser: Rasteriser, side: int = 761, allow_mirrored: bool = False) -> str | None:
    """Return the reason why a field cannot be baked into the mesh's own uv, or None if it can.

    allow_mirrored: charts may be mirrored, because the mesh has a handedness.

    Overlaps are detected from areas: overlapping charts have a larger total area than the pixels that they
    cover in a side × side image. The default side has no common factor with usual texture sizes. With a
    common factor, all pixels would have the same position relative to the texels, and the measured area would
    be wrong, because small charts are often aligned with texels.
    """
    if mesh.uv is None or mesh.uv_faces is None:
        return "it has no texture coordinates"
    used = mesh.uv[mesh.uv_faces.reshape(-1).long()]
    if not bool(torch.isfinite(used).all()) or bool((used < -1e-4).any()) or bool((used > 1 + 1e-4).any()):
        return "its texture coordinates leave the image"
    areas = uv_areas(mesh)
    total = float(areas.abs().sum())
    if total < 1e-3:
        return "its texture coordinates cover less than a thousandth of the image"
    if not allow_mirrored and float(-areas.clamp(max=0).sum()) > 1e-3 * total:
        return "some of its charts are mirrored"
    covered = rasteriser.rasterize(uv_clip(mesh)[None], mesh.uv_faces, (side, side))[..., 3] > 0
    if total > 1.05 * float(covered.float().mean()):
        return "its charts overlap"
    return None


def uv_clip(mesh: Mesh) -> Float[Tensor, "U 4"]:
    """Return clip-space positions with which a rasteriser draws every uv vertex at its position in the
    image.
    """
    assert mesh.uv is not None, "the mesh has no texture coordinates"
    flat = mesh.uv * 2 - 1
    return torch.cat([flat, torch.zeros_like(flat[:, :1]), torch.ones_like(flat[:, :1])], -1)
