"""The interface of a rasteriser, which every backend in this folder implements.

Legend for all backends (nvdiffrast's layout):
  clip   [B,V,4]   homogeneous clip positions (x, y, z, w). y/w = −1 is the top of image row 0, x/w = −1 the
                   left of column 0; the centre of pixel (row i, column j) lies at y/w = (i + 0.5)·2/H − 1,
                   x/w = (j + 0.5)·2/W − 1. Visible where −1 ≤ z/w ≤ 1 and w > 0; smaller z/w is nearer.
  faces  [F,3]     vertex indices, F < 2²⁴ (a float32 must hold F). Both sides of a face are drawn.
  rast   [B,H,W,4] (u, v, z/w, face index + 1), all 0 in the background. Perspective-correct barycentrics:
                   attribute = u·a0 + v·a1 + (1 − u − v)·a2 over the face's corners 0, 1, 2.
  colour [B,H,W,C] any values at the pixel centres.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Rasteriser(Protocol):
    """Rasterisation of triangles, differentiable except for the visibility of faces."""

    name: str

    def rasterize(
        self, clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
    ) -> Float[Tensor, "B H W 4"]:
        """The nearest face at each pixel centre. resolution = (height, width) in pixels.

        A centre on an edge of two faces belongs to exactly one of them (top-left rule). Triangles that extend
        behind the camera are drawn where they are visible. Gradients flow from u, v to clip. z/w and the face
        index have no gradient.
        """

    def interpolate(
        self,
        attributes: Float[Tensor, "V C"] | Float[Tensor, "B V C"],
        rast: Float[Tensor, "B H W 4"],
        faces: Int[Tensor, "F 3"],
    ) -> Float[Tensor, "B H W C"]:
        """Vertex attributes at the pixel centres, 0 in the background. Gradients flow to attributes, u and v.

        `faces` indexes `attributes` and may differ from the rasterised faces (texture seams), as long as row
        f describes the same face.
        """

    def antialias(
        self,
        colour: Float[Tensor, "B H W C"],
        rast: Float[Tensor, "B H W 4"],
        clip: Float[Tensor, "B V 4"],
        faces: Int[Tensor, "F 3"],
    ) -> Float[Tensor, "B H W C"]:
        """Blend the pixels along visible silhouettes by coverage. Gradients flow to colour and clip.

        Only this function gives gradients of an object's outline. Coinciding vertices must share an index,
        because an edge with one face counts as an open border.
        """

    def texture(
        self, texture: Float[Tensor, "Ht Wt C"], uv: Float[Tensor, "B H W 2"]
    ) -> Float[Tensor, "B H W C"]:
        """Bilinear look-up, clamped at the border.

        Texel (i, j) is centred at v = (i + 0.5)/Ht, u = (j + 0.5)/Wt; uv (0, 0) is the top-left corner of
        the texture. Differentiable in texture and uv.
        """
