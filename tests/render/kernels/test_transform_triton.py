"""Compare values and gradients of the Triton kernels of camera.transform_points with torch."""

import torch

from render.camera import orbit, transform_points_torch
from render.kernels.transform_triton import transform_points
from render.kernels.vec3_triton import BLOCK


def values_and_gradients(function, matrices, points) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result, and the gradient of its weighted sum with fixed weights."""
    points = points.clone().requires_grad_()
    clip = function(matrices, points)
    weights = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1)).to(clip)
    return clip.detach(), torch.autograd.grad((clip * weights).sum(), points)[0]


def test_values_and_gradients_equal_torch(kernel_device):
    """The last block is partly filled. The matrices and the points are not contiguous."""
    matrices = orbit(3, (8, 8)).world_to_clip.to(kernel_device).mT.contiguous().mT
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 2 * BLOCK + 37, generator=generator).to(kernel_device).T
    found = values_and_gradients(transform_points, matrices, points)
    expected = values_and_gradients(transform_points_torch, matrices.double(), points.double())
    for ours, value in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32 and ours.shape == value.shape
        assert (ours - value).abs().max() < 1e-6 * value.abs().max()


def test_no_points(kernel_device):
    matrices = torch.ones(2, 4, 4, device=kernel_device)
    clip, grad = values_and_gradients(transform_points, matrices, torch.zeros(0, 3, device=kernel_device))
    assert clip.shape == (2, 0, 4) and grad.shape == (0, 3)
