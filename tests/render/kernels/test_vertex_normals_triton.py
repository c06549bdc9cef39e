"""Compare values and gradients of the Triton kernels of smooth normals with torch."""

import pytest
import torch
import trimesh

from render import mesh as mesh_module
from render.kernels.available import triton_available
from render.kernels.vec3_triton import BLOCK
from render.kernels.vertex_normals_triton import smooth_normals as smooth_normals_triton
from render.mesh import smooth_normals, smooth_normals_torch


def bumpy_sphere(device, subdivisions: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a dented ball with an unused vertex and two degenerate faces (a point and a line)."""
    shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.7)
    generator = torch.Generator().manual_seed(3)
    v_pos = torch.tensor(shape.vertices).float()
    v_pos = v_pos + 0.02 * torch.randn(v_pos.shape, generator=generator)
    end = len(v_pos)
    line = torch.tensor([[0.25, 0.5, 1.0], [0.5, 1.0, 2.0], [0.75, 1.5, 3.0]])
    v_pos = torch.cat([v_pos, torch.ones(1, 3), line])
    odd = torch.tensor([[5, 5, 5], [end + 1, end + 2, end + 3]])
    faces = torch.cat([torch.tensor(shape.faces), odd])
    return v_pos.to(device), faces.to(device)


def values_and_gradients(function, v_pos, faces) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normals, and the gradient of their weighted sum with fixed weights."""
    v_pos = v_pos.clone().requires_grad_()
    normals = function(v_pos, faces)
    weights = torch.randn(v_pos.shape, generator=torch.Generator().manual_seed(4)).to(v_pos)
    return normals.detach(), torch.autograd.grad((normals * weights).sum(), v_pos)[0]


def assert_agree(v_pos, faces) -> None:
    exact = values_and_gradients(smooth_normals_torch, v_pos.double(), faces)
    for found, expected in zip(values_and_gradients(smooth_normals_triton, v_pos, faces), exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 3e-6 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_values_and_gradient(dtype, kernel_device):
    v_pos, faces = bumpy_sphere(kernel_device)
    assert len(faces) > BLOCK and len(faces) % BLOCK and len(v_pos) > BLOCK and len(v_pos) % BLOCK
    assert_agree(v_pos, faces.to(dtype))
    # The kernels must also accept a slice of a wider table and a transposed table, which are not contiguous.
    assert_agree(torch.cat([v_pos, v_pos], 1)[:, :3], faces.to(dtype).T.contiguous().T)


def test_vertices_without_a_normal_get_plus_z_and_no_gradient(kernel_device):
    v_pos, faces = bumpy_sphere(kernel_device)
    normals, grad = values_and_gradients(smooth_normals_triton, v_pos, faces)
    assert normals[-4:].tolist() == [[0.0, 0.0, 1.0]] * 4
    assert not grad[-4:].any() and grad.isfinite().all()


def test_gradient_equals_finite_differences(kernel_device):
    v_pos, faces = bumpy_sphere(kernel_device, subdivisions=1)
    _, grad = values_and_gradients(smooth_normals_triton, v_pos, faces)
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(v_pos.shape, generator=torch.Generator().manual_seed(4)).double()
    move = torch.randn(v_pos.shape, generator=generator)
    move[-4:] = 0
    step = 1e-2 * move.to(v_pos)
    higher, lower = (smooth_normals_triton(v_pos + sign * step, faces).cpu().double() for sign in (1, -1))
    change = ((higher - lower) * weights).sum() / 2e-2
    assert (grad.cpu() * move).sum().item() == pytest.approx(change.item(), rel=2e-2)


def test_no_graph_without_a_gradient(kernel_device):
    v_pos, faces = bumpy_sphere(kernel_device)
    assert smooth_normals_triton(v_pos, faces).grad_fn is None
    with torch.no_grad():
        assert smooth_normals_triton(v_pos.clone().requires_grad_(), faces).grad_fn is None


def test_no_faces_and_no_vertices(kernel_device):
    v_pos, faces = bumpy_sphere(kernel_device)
    normals, grad = values_and_gradients(smooth_normals_triton, v_pos, faces[:0])
    assert (normals == torch.tensor([0.0, 0.0, 1.0], device=kernel_device)).all() and not grad.any()
    assert smooth_normals_triton(v_pos[:0], faces[:0]).shape == (0, 3)


def test_kernels_are_selected_for_supported_tensors(kernel_device, monkeypatch):
    v_pos, faces = bumpy_sphere(kernel_device)
    assert triton_available(v_pos) == (kernel_device.type == "cuda")
    assert not triton_available(v_pos, v_pos.double()) and not triton_available(v_pos.cpu())
    monkeypatch.setattr(mesh_module, "triton_available", lambda *values: True)
    assert "SmoothNormals" in type(smooth_normals(v_pos.requires_grad_(), faces).grad_fn).__name__


@pytest.mark.gpu
def test_million_faces_on_cuda():
    v_pos, faces = bumpy_sphere(torch.device("cuda"), subdivisions=8)
    assert len(faces) > 1_000_000
    assert triton_available(v_pos)
    exact = values_and_gradients(smooth_normals_torch, v_pos.double(), faces)
    for found, expected in zip(values_and_gradients(smooth_normals, v_pos, faces), exact, strict=True):
        error = (found - expected).norm() / expected.norm()
        assert error < 1e-4
