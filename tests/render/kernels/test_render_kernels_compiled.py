"""Test that the kernels of meshes, surface points and images compile for a GPU in every variant of a run."""

import pytest
from triton_compile import compile_for_gpu

NORMALS = """
import torch
from render.kernels.vertex_normals_triton import smooth_normals
for index in (torch.int32, torch.int64):
    v_pos = torch.rand(5, 3, requires_grad=True)
    faces = torch.tensor([[0, 1, 2], [2, 3, 4]], dtype=index)
    torch.autograd.grad(smooth_normals(v_pos, faces).sum(), v_pos)
"""
POINTS = """
import torch
from render.kernels.gbuffer_triton import surface_points
for index in (torch.int32, torch.int64):
    values, v_pos = (torch.rand(shape, requires_grad=True) for shape in ((2, 4, 4, 6), (5, 3)))
    faces = torch.tensor([[0, 1, 2], [2, 3, 4]], dtype=index)
    rast, pixel, camera = torch.ones(2, 4, 4, 4), torch.arange(20), torch.ones(2, 3)
    for a, b in ((values, v_pos), (values, v_pos.detach()), (values.detach(), v_pos)):
        position, normal, to_viewer = surface_points(a, rast, pixel, faces, b, camera)
        normal.sum().backward(retain_graph=True)
        (position + normal + to_viewer).sum().backward()
    surface_points(values.detach(), rast, pixel, faces, v_pos.detach(), camera, normals=False)
"""
IMAGE = """
import torch
from render.gbuffer import SurfacePoints
from render.kernels.normal_image_triton import normal_image
rast, normal = torch.ones(2, 4, 4, 4), torch.rand(20, 3, requires_grad=True)
clip, values = torch.zeros(2, 5, 4), torch.ones(2, 4, 4, 6)
points = SurfacePoints(clip, rast, values, torch.arange(20), normal, normal, normal)
for flip in (False, True):
    normal_image(points, torch.ones(2, 3, 3), flip).sum().backward()
"""
TRANSFORM = """
import torch
from render.kernels.transform_triton import transform_points
transform_points(torch.ones(2, 4, 4), torch.rand(5, 3, requires_grad=True)).sum().backward()
"""


@pytest.mark.parametrize(
    ("code", "kernels"),
    [
        (NORMALS, {"_sum_faces": 2, "_normalize": 1, "_backward": 2}),
        (POINTS, {"_forward": 4, "_backward": 12}),
        (IMAGE, {"_forward": 2, "_backward": 2}),
        (TRANSFORM, {"_transform": 1, "_transform_backward": 1}),
    ],
    ids=["normals", "points", "image", "transform"],
)
def test_every_kernel_compiles(code, kernels):
    assert compile_for_gpu(code) == kernels
