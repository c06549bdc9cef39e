"""Compare the Triton kernels of the normal image with torch, separately and within a geometry scene."""

import pytest
import torch
import trimesh
from torch import nn

from render import gbuffer, mesh, normal_image
from render.camera import Cameras, look_at_origin
from render.gbuffer import Fragments
from render.kernels import available, normal_image_triton
from render.kernels.vec3_triton import BLOCK
from render.mesh import Mesh, make_mesh
from render.normal_image import normal_image_torch
from render.raster.select import choose_rasteriser
from render.scene import GeometryScene
from render.shade.light import EnvironmentLight


def rotations(count: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(3)))[0]


def random_fragments(device, covered: int, faces_as=torch.int64) -> dict[str, torch.Tensor]:
    """Return random pixels of three 9 × 8 views, of which `covered` are not background.

    The smooth normals are at all angles to the view, and some are zero.
    """
    generator = torch.Generator().manual_seed(4)
    count = 3 * 9 * 8
    v_pos = torch.randn(40, 3, generator=generator)
    faces = torch.stack([torch.randperm(40, generator=generator)[:3] for _ in range(50)])
    pixel = torch.randperm(count, generator=generator)[:covered]
    rast = torch.zeros(count, 4)
    rast[pixel, 3] = torch.randint(1, 51, (covered,), generator=generator).float()
    camera = 5 * torch.nn.functional.normalize(torch.randn(3, 3, generator=generator), dim=-1)
    position = 0.3 * torch.randn(count, 3, generator=generator)
    view = camera.repeat_interleave(72, 0) - position
    aside = torch.linalg.cross(view, torch.randn(view.shape, generator=generator))
    lean = 0.3 * torch.rand(count, 1, generator=generator) - 0.15
    smooth = torch.nn.functional.normalize(aside, dim=-1) + lean * torch.nn.functional.normalize(view, dim=-1)
    smooth[::7] = 0
    values = torch.cat([position, 0.8 * smooth], -1) * (rast[:, 3:] > 0)
    given = {"values": values.view(3, 9, 8, 6), "rast": rast.view(3, 9, 8, 4), "faces": faces.to(faces_as)}
    given |= {"v_pos": v_pos, "camera": camera, "rotation": rotations(3)}
    return {name: value.to(device) for name, value in given.items()}


def reference(values, rast, faces, v_pos, camera, rotation, flip) -> torch.Tensor:
    """Return the image of `normal_image_torch` for the arguments of the kernels."""
    clip = v_pos.new_zeros(len(rast), len(v_pos), 4)
    turns = torch.eye(4, device=rast.device, dtype=v_pos.dtype).expand(len(rast), 4, 4)
    views = Cameras(
        turns, camera, rotation, torch.zeros(len(rast), dtype=torch.int64), tuple(rast.shape[1:3])
    )
    return normal_image_torch(Fragments(clip, rast, values), Mesh(v_pos, faces, v_pos), views, flip)


def image_and_gradients(function, given, flip, wanted=("values", "v_pos")) -> list[torch.Tensor]:
    """Return the image and the gradients of its weighted sum."""
    given = given | {name: given[name].clone().requires_grad_() for name in wanted}
    image = function(**given, flip=flip)
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(5)).to(image)
    return [image.detach(), *torch.autograd.grad((image * weights).sum(), [given[name] for name in wanted])]


def to_float64(given):
    return {name: value.double() if value.is_floating_point() else value for name, value in given.items()}


def test_flip_is_applied_after_the_rotation(kernel_device):
    """A rotation by 180° about y maps −x to +x. The flip maps +x back to −x and negates the gradient."""
    device = kernel_device
    half_turn = torch.diag(torch.tensor([-1.0, 1.0, -1.0], device=device)).repeat(1, 1, 1)
    # The camera is on the side of the normal −x, and the face has the same normal.
    corners = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, 0]], device=device)
    given = {
        "values": torch.tensor([0.0, 0, 0, -1, 0, 0], device=device).expand(1, 4, 5, 6),
        "rast": torch.tensor([0.0, 0, 0, 1], device=device).expand(1, 4, 5, 4),
        "faces": torch.tensor([[0, 1, 2]], device=device),
        "v_pos": corners,
        "camera": torch.tensor([[-3.0, 0, 0]], device=device),
        "rotation": half_turn,
    }
    for function in (reference, normal_image_triton.normal_image):
        values = given["values"].clone().requires_grad_()
        image = function(**given | {"values": values}, flip=True)
        assert torch.equal(image, torch.tensor([-1.0, 0, 0, 1], device=device).expand(1, 4, 5, 4))
        # For a normal (−1, y, z), the second component of the image is y.
        (grad,) = torch.autograd.grad(image[..., 1].sum(), values)
        assert torch.allclose(grad[..., 3:], torch.tensor([0.0, 1, 0], device=device))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("covered", "faces_as"), [(BLOCK + 37, torch.int32), (1, torch.int64)])
def test_values_and_gradients(flip, covered, faces_as, kernel_device):
    given = random_fragments(kernel_device, covered, faces_as)
    found = image_and_gradients(normal_image_triton.normal_image, given, flip)
    # The kernel must also accept column-major matrices, as in a batch of transposed matrices.
    turned = given | {"rotation": given["rotation"].mT.contiguous().mT}
    again = image_and_gradients(normal_image_triton.normal_image, turned, flip)
    expected = image_and_gradients(reference, to_float64(given), flip)
    assert torch.equal(found[0], again[0]) and (found[0][..., 3] == 1).sum() == covered
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and two.abs().max() > 0.1
        assert (one - two).abs().max() <= 1e-5 * two.abs().max()


@pytest.mark.parametrize("wanted", ["values", "v_pos"])
def test_gradient_of_a_single_input(wanted, kernel_device):
    given = random_fragments(kernel_device, 60)
    _, found = image_and_gradients(normal_image_triton.normal_image, given, True, [wanted])
    _, expected = image_and_gradients(reference, to_float64(given), True, [wanted])
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max() > 0


def test_image_without_covered_pixels(kernel_device):
    given = random_fragments(kernel_device, 0)
    found = image_and_gradients(normal_image_triton.normal_image, given, True)
    assert not any(value.any() for value in found)


def test_no_graph_without_a_gradient(kernel_device):
    given = random_fragments(kernel_device, 5)
    assert normal_image_triton.normal_image(**given, flip=True).grad_fn is None


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
        for module in (mesh, gbuffer, normal_image):
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
