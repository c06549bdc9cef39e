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
from render.kernels.normal_image_triton import normal_image
rast, camera, rotation = torch.ones(2, 4, 4, 4), torch.ones(2, 3), torch.ones(2, 3, 3)
for index in (torch.int32, torch.int64):
    values, v_pos = (torch.rand(shape, requires_grad=True) for shape in ((2, 4, 4, 6), (5, 3)))
    faces = torch.tensor([[0, 1, 2], [2, 3, 4]], dtype=index)
    for flip in (False, True):
        normal_image(values, rast, faces, v_pos, camera, rotation, flip).sum().backward()
    normal_image(values.detach(), rast, faces, v_pos, camera, rotation, True).sum().backward()
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
        (IMAGE, {"_forward": 4, "_backward": 6}),
        (TRANSFORM, {"_transform": 1, "_transform_backward": 1}),
    ],
    ids=["normals", "points", "image", "transform"],
)
def test_every_kernel_compiles(code, kernels):
    assert compile_for_gpu(code) == kernels
