"""Compare the Triton kernels of the normal image with torch, separately and within a geometry scene."""

import dataclasses

import pytest
import torch
import trimesh
from torch import nn

from render import gbuffer, mesh, scene
from render.camera import look_at_origin
from render.gbuffer import SurfacePoints
from render.kernels import available, normal_image_triton
from render.kernels.vec3_triton import BLOCK
from render.mesh import make_mesh
from render.raster.select import choose_rasteriser
from render.scene import GeometryScene, normal_image
from render.shade.light import EnvironmentLight


def rotations(count: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(3)))[0]


def random_covered_pixels(device, count: int) -> SurfacePoints:
    """Return random pixels of three 9 × 8 views in ascending order. Some normals are zero."""
    generator = torch.Generator().manual_seed(4)
    pixel = torch.randperm(3 * 9 * 8, generator=generator)[:count].sort()[0]
    rast = torch.zeros(3 * 9 * 8, 4)
    rast[pixel, 3] = torch.randint(1, 1000, (count,), generator=generator).float()
    normal = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    # Zero normals are included, because their rotated x component is exactly 0, where the flip to −|x| has a
    # kink.
    normal[::7] = 0
    fields = {"clip": torch.zeros(3, 1, 4), "rast": rast.view(3, 9, 8, 4), "pixel": pixel}
    fields["values"] = torch.zeros(3, 9, 8, 6)
    fields |= {"position": normal, "normal": normal, "to_viewer": normal}
    return SurfacePoints(**{name: value.to(device) for name, value in fields.items()})


def values_and_gradients(function, points, rotation, flip) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the image and the gradient of its weighted sum with respect to the normals."""
    points.normal.grad = None
    image = function(points, rotation, flip)
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(5)).to(image)
    (image * weights).sum().backward()
    return image.detach(), points.normal.grad


def test_flip_is_applied_after_the_rotation(kernel_device):
    """A rotation by 180° about y maps −x to +x. The flip maps +x back to −x and negates the gradient."""
    half_turn = torch.diag(torch.tensor([-1.0, 1.0, -1.0])).to(kernel_device).repeat(3, 1, 1)
    for function in (normal_image, normal_image_triton.normal_image):
        points = random_covered_pixels(kernel_device, 20)
        normal = torch.tensor([-1.0, 0, 0], device=kernel_device).repeat(20, 1).requires_grad_()
        points = dataclasses.replace(points, normal=normal)
        image = function(points, half_turn, True)
        assert torch.equal(points.gather(image)[:, :3], normal)
        (grad,) = torch.autograd.grad(image[..., 0].sum(), normal)
        # The image has x' = −|−x|. For x < 0 this equals x, so the derivative is 1.
        assert torch.equal(grad, torch.tensor([1.0, 0, 0]).to(kernel_device).expand(20, 3))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("count", [BLOCK + 37, 0])
def test_values_and_gradient(flip, count, kernel_device):
    points, rotation = random_covered_pixels(kernel_device, count), rotations(3).to(kernel_device)
    points.normal.requires_grad_()
    found = values_and_gradients(normal_image_triton.normal_image, points, rotation, flip)
    # The kernel must also accept column-major matrices, as in a batch of transposed matrices.
    again = values_and_gradients(normal_image_triton.normal_image, points, rotation.mT.contiguous().mT, flip)
    expected = values_and_gradients(normal_image, points, rotation, flip)
    for one, two, three in zip(found, again, expected, strict=True):
        assert one.dtype == torch.float32 and one.shape == three.shape
        assert torch.equal(one, two) and torch.allclose(one, three, atol=1e-6)


def test_no_graph_without_a_gradient(kernel_device):
    points = random_covered_pixels(kernel_device, 5)
    assert normal_image_triton.normal_image(points, rotations(3).to(kernel_device), True).grad_fn is None


class Ball(nn.Module):
    def __init__(self, subdivisions: int):
        super().__init__()
        shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.7)
        places = torch.tensor(shape.vertices).float()
        self.v_pos = nn.Parameter(places * (1 + 0.2 * (5 * places).sin().prod(-1, keepdim=True)))
        self.register_buffer("faces", torch.tensor(shape.faces))

    def mesh(self):
        return make_mesh(self.v_pos, self.faces)


def scenes(device, size, subdivisions, monkeypatch):
    """Yield image and vertex gradient of a scene with rotated normals, first with kernels, then without."""
    ball = Ball(subdivisions).to(device)
    angle = torch.tensor([0.3, 1.5, 3.0, 4.4])
    light = EnvironmentLight(torch.ones(6, 4, 4, 3))
    views = look_at_origin(angle, 0.2 * angle, torch.full((4,), 0.7), size, normal_rotation=rotations(4))
    for kernels in (True, False):
        for module in (mesh, gbuffer, scene):
            monkeypatch.setattr(module, "triton_available", lambda *values, answer=kernels: answer)
        image = GeometryScene(ball, choose_rasteriser(device), light, flip_normal=True)(views)
        weights = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(6)).to(device)
        # The weights are smooth. With random weights per pixel, the sums of the gradient would be as small as
        # the rounding error.
        weights = nn.functional.interpolate(weights, size=size, mode="bilinear").permute(0, 2, 3, 1)
        yield image.detach(), torch.autograd.grad((image * weights).sum(), ball.v_pos)[0]


def test_scene_with_kernels_equals_torch(kernel_device, monkeypatch):
    (found, grad), (expected, exact) = scenes(kernel_device, (24, 32), 2, monkeypatch)
    assert (expected[..., 3] > 0).sum() > 300
    assert torch.allclose(found, expected, atol=1e-5)
    assert (grad - exact).norm() < 1e-4 * exact.norm()


@pytest.mark.gpu
def test_full_size_scene_equals_torch_on_cuda(monkeypatch):
    assert available.triton_available(torch.zeros(1, device="cuda"))
    (found, grad), (expected, exact) = scenes(torch.device("cuda"), (512, 512), 7, monkeypatch)
    assert (expected[..., 3] > 0).sum() > 200_000
    # If a face is almost parallel to the view direction, rounding decides which of its sides is visible, so a
    # few pixels may differ.
    assert ((found - expected).abs() > 1e-3).any(-1).sum() < 40
    assert (grad - exact).norm() < 1e-2 * exact.norm()
