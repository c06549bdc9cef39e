"""Rasteriser with NVIDIA's nvdiffrast on CUDA. This module is imported only if nvdiffrast is selected."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from render.raster.silhouette import CachedByFaces, blend_pairs, build_edges, find_pairs


class NvdiffrastRasteriser:
    """Rasteriser on nvdiffrast's CUDA context (no OpenGL), float32 on one CUDA device.

    antialias: "nvdiffrast" selects nvdiffrast's own method. This method is fast, but loses most of the
    silhouette gradient if triangles are about as small as one pixel. "edge" selects the method of
    silhouette.py.
    """

    name = "nvdiffrast"

    def __init__(
        self,
        device: torch.device | str = "cuda",
        antialias: Literal["nvdiffrast", "edge"] = "nvdiffrast",
    ) -> None:
        # nvdiffrast is imported only when this object is created. It is an optional package, because its
        # installation needs the CUDA toolkit.
        import nvdiffrast.torch as dr

        if antialias not in ("nvdiffrast", "edge"):
            raise ValueError(f"antialias: {antialias!r} is unknown; allowed: nvdiffrast, edge")
        self._dr = dr
        self._context = dr.RasterizeCudaContext(device=device)
        self._edge_rule = antialias == "edge"
        self._edges = CachedByFaces(build_edges)
        self._triangles = CachedByFaces(lambda faces: faces.int().contiguous())
        self._topology = CachedByFaces(
            lambda faces: dr.antialias_construct_topology_hash(faces.int().contiguous())
        )

    def rasterize(
        self, clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
    ) -> Float[Tensor, "B H W 4"]:
        if len(faces) == 0:
            return clip.new_zeros(len(clip), *resolution, 4)
        return self._dr.rasterize(self._context, clip.contiguous(), self._triangles(faces), resolution)[0]

    def interpolate(
        self,
        attributes: Float[Tensor, "V C"] | Float[Tensor, "B V C"],
        rast: Float[Tensor, "B H W 4"],
        faces: Int[Tensor, "F 3"],
    ) -> Float[Tensor, "B H W C"]:
        if len(faces) == 0:
            return attributes.new_zeros(*rast.shape[:3], attributes.shape[-1])
        batched = attributes[None] if attributes.dim() == 2 else attributes
        return self._dr.interpolate(batched.contiguous(), rast.contiguous(), self._triangles(faces))[0]

    def antialias(
        self,
        colour: Float[Tensor, "B H W C"],
        rast: Float[Tensor, "B H W 4"],
        clip: Float[Tensor, "B V 4"],
        faces: Int[Tensor, "F 3"],
    ) -> Float[Tensor, "B H W C"]:
        if len(faces) == 0:
            return colour
        if self._edge_rule:
            return blend_pairs(colour, clip, find_pairs(rast, clip, self._edges(faces)))
        return self._dr.antialias(
            colour.contiguous(),
            rast.contiguous(),
            clip.contiguous(),
            self._triangles(faces),
            topology_hash=self._topology(faces),
        )

    def texture(
        self, texture: Float[Tensor, "Ht Wt C"], uv: Float[Tensor, "B H W 2"]
    ) -> Float[Tensor, "B H W C"]:
        return self._dr.texture(
            texture[None].contiguous(), uv.contiguous(), filter_mode="linear", boundary_mode="clamp"
        )
