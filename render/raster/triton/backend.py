"""The CUDA rasteriser in Triton. It computes in float64, needs no CUDA toolkit and does not synchronise the
host with the GPU.

The antialiasing method is that of render/raster/silhouette.py. Tests run the kernels on the CPU with Triton's
interpreter.
"""

from dataclasses import dataclass

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from render.raster.reference import ReferenceRasteriser, sample_bilinear
from render.raster.silhouette import CachedByFaces
from render.raster.triton import blend, interpolate, silhouette, triangles
from render.raster.triton.launch_config import channel_blocks, launch_config_for, on_device_of


@dataclass(frozen=True)
class EdgeTable:
    """The half-edges of a mesh, grouped by their smaller vertex; see silhouette.py in this folder.

    groups [3F]: larger vertex << 32 | half-edge << 1 | ascends. starts [V+1]: the start of each group.
    """

    groups: Int[Tensor, " 3F"]
    starts: Int[Tensor, " V+1"]


@dataclass(frozen=True)
class PairTable:
    """The pixel pairs that silhouettes cross, and the count[0] pixels that belong to at least one pair.

    winners: see silhouette.py in this folder. pixels: flat indices over (B, H, W) in any order; only the
    first count[0] are valid.
    """

    winners: Int[Tensor, "B 2 H W"]
    pixels: Int[Tensor, " B*H*W"]
    count: Int[Tensor, " 1"]


class TritonRasteriser:
    """Rasteriser for CUDA tensors, float32 or float64."""

    name = "triton"

    def __init__(self) -> None:
        self._edges = CachedByFaces(build_edge_table)

    def rasterize(
        self, clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
    ) -> Float[Tensor, "B H W 4"]:
        return _Rasterize.apply(clip, faces, resolution)

    def interpolate(
        self,
        attributes: Float[Tensor, "V C"] | Float[Tensor, "B V C"],
        rast: Float[Tensor, "B H W 4"],
        faces: Int[Tensor, "F 3"],
    ) -> Float[Tensor, "B H W C"]:
        return _Interpolate.apply(attributes, rast, faces)

    def antialias(
        self,
        colour: Float[Tensor, "B H W C"],
        rast: Float[Tensor, "B H W 4"],
        clip: Float[Tensor, "B V 4"],
        faces: Int[Tensor, "F 3"],
    ) -> Float[Tensor, "B H W C"]:
        if len(faces) == 0:
            return colour
        with on_device_of(clip):
            edges = self._edges(faces, clip.shape[1])
            pairs = find_pairs(rast.detach(), clip.detach(), faces, edges)
        return _Blend.apply(colour, clip, faces, pairs.winners, pairs.pixels, pairs.count)

    def texture(
        self, texture: Float[Tensor, "Ht Wt C"], uv: Float[Tensor, "B H W 2"]
    ) -> Float[Tensor, "B H W C"]:
        return sample_bilinear(texture, uv)


def self_test(device: torch.device | str) -> None:
    """Render a small and a large triangle forward and backward, and compare with the reference.

    The reference runs on the CPU, because its operations would be loaded onto the GPU only for this test.

    Raises ArithmeticError if the results differ.
    """
    corners = [
        [-0.9, -0.8, 0.1],
        [1.2, -0.7, 0.2],
        [0.1, 0.9, 0.3],
        [-0.5, 0.1, 0],
        [-0.4, 0.1, 0],
        [-0.4, 0.4, 0],
    ]
    results = []
    for rasteriser, place in ((TritonRasteriser(), device), (ReferenceRasteriser(), "cpu")):
        positions = torch.tensor(corners, device=place)
        faces = torch.arange(6, device=place).view(2, 3)
        clip = torch.nn.functional.pad(positions, (0, 1), value=1.0)[None].requires_grad_()
        rast = rasteriser.rasterize(clip, faces, (16, 16))
        image = rasteriser.antialias(rasteriser.interpolate(positions, rast, faces), rast, clip, faces)
        results.append((rast, image, torch.autograd.grad(image.square().sum(), clip)[0]))
    for got, expected in zip(*results, strict=True):
        if not torch.allclose(got.cpu(), expected, rtol=1e-4, atol=1e-4):
            raise ArithmeticError("the results of the kernels differ from the reference")


def draw(
    clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
) -> Int[Tensor, "B H W"]:
    """Return the key of the nearest face at each pixel, with the depth in the high bits and the face index in
    the low bits.
    """
    (batch, vertex_count, _), (height, width) = clip.shape, resolution
    background = triangles.BACKGROUND_KEY.value
    keys = torch.full((batch, height, width), background, dtype=torch.int64, device=clip.device)
    if len(faces) == 0:
        return keys
    list_items = torch.empty(batch * len(faces), dtype=torch.int64, device=clip.device)
    counts = torch.zeros(2, dtype=torch.int32, device=clip.device)
    config, size = launch_config_for(clip), (height, width)
    exact = all(side & (side - 1) == 0 for side in size)
    triangles.draw_small_faces[triton.cdiv(len(faces), config.faces), batch](
        clip, faces, keys, list_items, counts, len(faces), vertex_count, *size,
        SMALL=config.small_box, MEDIUM=config.medium_box, EXACT=exact, BLOCK=config.faces, num_warps=1,
        enable_fp_fusion=False,
    )  # fmt: skip
    for large, launch in enumerate((config.medium, config.large)):
        items, rows, columns = launch.tile
        triangles.draw_listed_faces[launch.programs](
            clip, faces, keys, list_items, counts, len(faces), vertex_count, batch, *size,
            LARGE=large, EXACT=exact, ITEMS=items, ROWS=rows, COLUMNS=columns, num_warps=launch.warps,
            enable_fp_fusion=False,
        )  # fmt: skip
    return keys


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, clip, faces, resolution):
        clip, faces = clip.contiguous(), faces.contiguous()
        rast = clip.new_empty(len(clip), *resolution, 4)
        block, pixel_count = launch_config_for(clip).pixels, rast.numel() // 4
        with on_device_of(clip):
            keys = draw(clip, faces, resolution)
            triangles.resolve[(triton.cdiv(pixel_count, block),)](
                clip, faces, keys, rast, clip.shape[1], pixel_count, *resolution,
                BLOCK=block, enable_fp_fusion=False,
            )  # fmt: skip
        ctx.save_for_backward(clip, faces, rast)
        return rast

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rast):
        clip, faces, rast = ctx.saved_tensors
        # The gradient is summed in float64, because a small triangle adds large numbers that nearly cancel.
        grad = torch.zeros_like(clip, dtype=torch.float64)
        block, pixel_count = launch_config_for(clip).pixels, rast.numel() // 4
        with on_device_of(clip):
            triangles.resolve_backward[(triton.cdiv(pixel_count, block),)](
                clip, faces, rast, grad_rast.contiguous(), grad, clip.shape[1], pixel_count,
                *rast.shape[1:3], BLOCK=block,
            )  # fmt: skip
        return grad.to(clip.dtype), None, None


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, attributes, rast, faces):
        attributes, rast, faces = attributes.contiguous(), rast.contiguous(), faces.contiguous()
        out = attributes.new_empty(*rast.shape[:3], attributes.shape[-1])
        ctx.save_for_backward(attributes, rast, faces)
        with on_device_of(rast):
            grid, sizes, blocks = _Interpolate.launch(attributes, rast)
            interpolate.interpolate[grid](attributes, rast, faces, out, *sizes, **blocks)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        attributes, rast, faces = ctx.saved_tensors
        to_attributes, to_rast = ctx.needs_input_grad[:2]
        grad_attributes = torch.zeros_like(attributes) if to_attributes else None
        grad_rast = torch.empty_like(rast) if to_rast else None
        with on_device_of(rast):
            grid, sizes, blocks = _Interpolate.launch(attributes, rast)
            interpolate.interpolate_backward[grid](
                attributes, rast, faces, grad_out.contiguous(), grad_attributes, grad_rast, *sizes, **blocks,
                TO_ATTRIBUTES=to_attributes, TO_RAST=to_rast,
            )  # fmt: skip
        return grad_attributes, grad_rast, None

    @staticmethod
    def launch(attributes: Tensor, rast: Tensor) -> tuple[tuple[int], tuple[int, ...], dict[str, int]]:
        """Return the grid, the sizes and the constants for the forward and the backward kernel."""
        config = launch_config_for(rast)
        blocks = channel_blocks(attributes.shape[-1], config.values, config.pixels)
        pixel_count = rast.numel() // 4
        stride = attributes[0].numel() if attributes.dim() == 3 else 0
        sizes = pixel_count, rast.shape[1] * rast.shape[2], stride
        return (triton.cdiv(pixel_count, blocks["BLOCK"]),), sizes, blocks


def build_edge_table(faces: Int[Tensor, "F 3"], vertex_count: int) -> EdgeTable:
    """Return the half-edges of a mesh, grouped by their smaller vertex."""
    faces = faces.contiguous()
    half_edges, device = faces.numel(), faces.device
    counts = torch.zeros(vertex_count + 1, dtype=torch.int32, device=device)
    ranks = torch.empty(half_edges, dtype=torch.int32, device=device)
    groups = torch.empty(half_edges, dtype=torch.int64, device=device)
    block = launch_config_for(faces).edges
    grid = (triton.cdiv(half_edges, block),)
    silhouette.count_half_edges[grid](faces, counts, ranks, half_edges, BLOCK=block)
    starts = counts.cumsum(0, dtype=torch.int32)
    silhouette.group_half_edges[grid](faces, starts, ranks, groups, half_edges, BLOCK=block)
    return EdgeTable(groups, starts)


def find_pairs(
    rast: Float[Tensor, "B H W 4"], clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], edges: EdgeTable
) -> PairTable:
    clip, faces, rast = clip.contiguous(), faces.contiguous(), rast.contiguous()
    (batch, vertex_count, _), (height, width), half_edges = clip.shape, rast.shape[1:3], faces.numel()
    words = triton.cdiv(batch, silhouette.VIEWS_PER_WORD.value)
    marks = torch.empty(words, len(faces), dtype=torch.int32, device=clip.device)
    items = torch.empty(batch * half_edges, dtype=torch.int64, device=clip.device)
    pixels = torch.empty(batch * height * width, dtype=torch.int64, device=clip.device)
    counts = torch.zeros(2, dtype=torch.int32, device=clip.device)
    winners = torch.full((batch, 2, height, width), -1, dtype=torch.int64, device=clip.device)
    config = launch_config_for(clip)
    silhouette.mark_faces[triton.cdiv(len(faces), config.edges), words](
        clip, faces, marks, len(faces), vertex_count, batch, BLOCK=config.edges, enable_fp_fusion=False
    )
    silhouette.list_silhouettes[triton.cdiv(half_edges, config.half_edges), words](
        faces, edges.starts, edges.groups, marks, items, counts[:1], len(faces), half_edges, batch,
        BLOCK=config.half_edges,
    )  # fmt: skip
    # If a mesh has many faces, the faces are small and their edges cross few lines of pixel centres, so LINES
    # is 1.
    many = len(faces) >= config.many_faces
    silhouette.find_crossings[(config.silhouette_programs,)](
        clip, rast, faces, items, counts[:1], winners, vertex_count, height, width,
        ITEMS=config.silhouettes_per_program, LINES=1 if many else config.lines_per_step,
        num_warps=config.silhouette_warps, enable_fp_fusion=False,
    )  # fmt: skip
    blend.list_pixels[(triton.cdiv(len(pixels), config.pixels),)](
        winners, pixels, counts[1:], len(pixels), height, width, BLOCK=config.pixels
    )
    return PairTable(winners, pixels, counts[1:])


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, colour, clip, faces, winners, pixels, count):
        colour, clip, faces = colour.contiguous(), clip.contiguous(), faces.contiguous()
        out = colour.clone()
        ctx.save_for_backward(colour, clip, faces, winners, pixels, count)
        with on_device_of(clip):
            grid, sizes, blocks = _Blend.launch(colour, clip)
            blend.blend[grid](
                colour, clip, faces, winners, pixels, count, out, *sizes, **blocks, enable_fp_fusion=False
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        colour, clip, *results = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        grad_colour, to_clip = grad_out.clone(), ctx.needs_input_grad[1]
        grad_clip = torch.zeros_like(clip, dtype=torch.float64) if to_clip else None
        with on_device_of(clip):
            grid, sizes, blocks = _Blend.launch(colour, clip)
            blend.blend_backward[grid](
                colour, clip, *results, grad_out, grad_colour, grad_clip, *sizes, **blocks,
                TO_CLIP=to_clip, enable_fp_fusion=False,
            )  # fmt: skip
        return grad_colour, grad_clip.to(clip.dtype) if to_clip else None, None, None, None, None

    @staticmethod
    def launch(colour: Tensor, clip: Tensor) -> tuple[tuple[int], tuple[int, ...], dict[str, int]]:
        """Return the grid, the sizes and the constants for the forward and the backward kernel."""
        config = launch_config_for(colour)
        blocks = channel_blocks(colour.shape[-1], config.values // 4, config.blend_pixels)
        return (config.blend_programs,), (clip.shape[1], *colour.shape[1:3]), blocks
