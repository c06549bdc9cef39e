"""The interface of a rasteriser. Every backend in this folder implements it.

Notation of all backends (nvdiffrast's layout):
  clip   [B,V,4]   homogeneous clip positions (x, y, z, w). y/w = −1 is the top of image row 0, x/w = −1 the
                   left of column 0; the centre of pixel (row i, column j) lies at y/w = (i + 0.5)·2/H − 1,
                   x/w = (j + 0.5)·2/W − 1. A point is visible if −1 ≤ z/w ≤ 1 and w > 0; a smaller z/w is
                   nearer.
  faces  [F,3]     vertex indices, F < 2²⁴, because rast stores face indices as float32. Both sides of a face
                   are drawn.
  rast   [B,H,W,4] (u, v, z/w, face index + 1), all 0 in the background. u and v are perspective-correct
                   barycentric coordinates: attribute = u·a0 + v·a1 + (1 − u − v)·a2 for the face's corners
                   0, 1, 2.
  colour [B,H,W,C] any values at the pixel centres.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Rasteriser(Protocol):
    """Rasterisation of triangles. It is differentiable, except for the visibility of faces."""

    name: str

    def rasterize(
        self, clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
    ) -> Float[Tensor, "B H W 4"]:
        """Return the nearest face at each pixel centre. resolution = (height, width) in pixels.

        If a pixel centre lies on the common edge of two faces, exactly one of the faces is drawn there
        (top-left rule). The visible part of a triangle that extends behind the camera is drawn. u and v are
        differentiable with respect to clip. z/w and the face index have no gradient.
        """

    def interpolate(
        self,
        attributes: Float[Tensor, "V C"] | Float[Tensor, "B V C"],
        rast: Float[Tensor, "B H W 4"],
        faces: Int[Tensor, "F 3"],
    ) -> Float[Tensor, "B H W C"]:
        """Interpolate vertex attributes at the pixel centres. The result is 0 in the background.

        `faces` contains indices into `attributes`. These indices may differ from the vertex indices that were
        rasterised, for example at texture seams, but row f must belong to the same face in both arrays. The
        result is differentiable with respect to attributes, u and v.
        """

    def antialias(
        self,
        colour: Float[Tensor, "B H W C"],
        rast: Float[Tensor, "B H W 4"],
        clip: Float[Tensor, "B V 4"],
        faces: Int[Tensor, "F 3"],
    ) -> Float[Tensor, "B H W C"]:
        """Blend the pixels along visible silhouettes by coverage.

        The result is differentiable with respect to colour and clip. Only this function gives gradients for
        an object's outline. Vertices at the same position must share an index. Otherwise an inner edge
        consists of two edges with one face each, and these are blended like an outline.
        """

    def texture(
        self, texture: Float[Tensor, "Ht Wt C"], uv: Float[Tensor, "B H W 2"]
    ) -> Float[Tensor, "B H W C"]:
        """Sample a texture bilinearly. Coordinates are clamped at the border.

        The centre of texel (i, j) is v = (i + 0.5)/Ht, u = (j + 0.5)/Wt. uv (0, 0) is the top-left corner of
        the texture. The result is differentiable with respect to texture and uv.
        """
