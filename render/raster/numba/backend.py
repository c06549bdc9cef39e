"""The CPU rasteriser with numba kernels. A thread pool processes the views in parallel.

The threads run in parallel, because the kernels release the GIL. Each kernel call writes only to the output
of one view, so no locks are needed.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from render.raster.numba import silhouette
from render.raster.numba import triangles as kernels
from render.raster.reference import sample_bilinear
from render.raster.silhouette import CachedByFaces, Edges, Pairs, blend_pairs


class NumbaRasteriser:
    """Rasteriser for CPU tensors, float32 or float64."""

    name = "numba"

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="rasteriser")
        self._edges = CachedByFaces(build_edges)

    def rasterize(
        self, clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
    ) -> Float[Tensor, "B H W 4"]:
        return _Rasterize.apply(clip, faces, resolution, self._map_views)

    def interpolate(
        self,
        attributes: Float[Tensor, "V C"] | Float[Tensor, "B V C"],
        rast: Float[Tensor, "B H W 4"],
        faces: Int[Tensor, "F 3"],
    ) -> Float[Tensor, "B H W C"]:
        return _Interpolate.apply(attributes, rast, faces, self._map_views)

    def antialias(
        self,
        colour: Float[Tensor, "B H W C"],
        rast: Float[Tensor, "B H W 4"],
        clip: Float[Tensor, "B V 4"],
        faces: Int[Tensor, "F 3"],
    ) -> Float[Tensor, "B H W C"]:
        return blend_pairs(colour, clip, self._find_pairs(rast, clip, self._edges(faces)))

    def texture(
        self, texture: Float[Tensor, "Ht Wt C"], uv: Float[Tensor, "B H W 2"]
    ) -> Float[Tensor, "B H W C"]:
        return sample_bilinear(texture, uv)

    def _map_views(self, task: Callable[[int], object], count: int) -> list:
        """Return [task(0), …, task(count − 1)], computed by the pool. If a task raises an exception, this
        method raises the exception.
        """
        return list(self._pool.map(task, range(count)))

    def _find_pairs(
        self, rast: Float[Tensor, "B H W 4"], clip: Float[Tensor, "B V 4"], edges: Edges
    ) -> Pairs:
        clip_array, rast_array = to_numpy(clip), to_numpy(rast)
        table = [to_numpy(part) for part in (edges.vertices, edges.start, edges.opposite)]
        rows_per_view = self._map_views(
            lambda b: silhouette.find_pairs(clip_array[b], rast_array[b], *table), len(clip)
        )
        rows = torch.from_numpy(np.concatenate(rows_per_view))
        view = torch.arange(len(rows_per_view)).repeat_interleave(
            torch.tensor([len(part) for part in rows_per_view])
        )
        offset = view * (rast.shape[1] * rast.shape[2])
        return Pairs(rows[:, 0] + offset, rows[:, 1] + offset, rows[:, 2:4], view, rows[:, 4])


def build_edges(faces: Int[Tensor, "F 3"]) -> Edges:
    """Return the edges of a mesh, computed by the compiled silhouette.build_edges."""
    vertex_count = int(faces.max()) + 1 if len(faces) else 0
    return Edges(*map(torch.from_numpy, silhouette.build_edges(to_numpy(faces.long()), vertex_count)))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return the detached tensor as a C-ordered array."""
    return tensor.detach().contiguous().numpy()


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, clip, faces, resolution, map_views):
        rast = clip.new_zeros(len(clip), *resolution, 4)
        positions, triangles, out = to_numpy(clip), to_numpy(faces.long()), rast.numpy()
        map_views(lambda b: kernels.rasterize(positions[b], triangles, out[b]), len(clip))
        ctx.save_for_backward(clip, faces, rast)
        ctx.map_views = map_views
        return rast

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rast):
        clip, faces, rast = ctx.saved_tensors
        arrays = to_numpy(clip), to_numpy(rast), to_numpy(grad_rast)
        triangles = to_numpy(faces.long())
        # The gradient is summed in float64, because a small triangle adds large numbers that nearly cancel.
        grad = np.zeros(clip.shape)

        def one_view(b: int) -> None:
            positions, pixels, grad_pixels = (array[b] for array in arrays)
            kernels.rasterize_backward(positions, triangles, pixels, grad_pixels, grad[b])

        ctx.map_views(one_view, len(clip))
        return torch.from_numpy(grad).to(clip.dtype), None, None, None


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, attributes, rast, faces, map_views):
        out = attributes.new_zeros(*rast.shape[:3], attributes.shape[-1])
        values, pixels, triangles = per_view(attributes, len(rast)), to_numpy(rast), to_numpy(faces.long())
        filled = out.numpy()
        map_views(lambda b: kernels.interpolate(values[b], pixels[b], triangles, filled[b]), len(rast))
        ctx.save_for_backward(attributes, rast, faces)
        ctx.map_views = map_views
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        attributes, rast, faces = ctx.saved_tensors
        values, triangles = per_view(attributes, len(rast)), to_numpy(faces.long())
        pixels, grad_pixels = to_numpy(rast), to_numpy(grad_out)
        grad_rast = torch.zeros_like(rast, memory_format=torch.contiguous_format)
        # Each view has its own buffer, because views run in parallel. If the views share the attributes, the
        # buffers are summed afterwards.
        grad = attributes.new_zeros(len(rast), *attributes.shape[-2:])
        out = grad.numpy(), grad_rast.numpy()

        def one_view(b: int) -> None:
            kernels.interpolate_backward(
                values[b], pixels[b], triangles, grad_pixels[b], out[0][b], out[1][b]
            )

        ctx.map_views(one_view, len(rast))
        return grad if attributes.dim() == 3 else grad.sum(0), grad_rast, None, None


def per_view(attributes: Float[Tensor, "V C"] | Float[Tensor, "B V C"], batch: int) -> list[np.ndarray]:
    """Return the attributes [V,C] of each view."""
    array = to_numpy(attributes)
    return list(array) if attributes.dim() == 3 else [array] * batch
