"""Compare the Triton kernels of surface points with torch on synthetic points and on rendered images."""

import math

import pytest
import torch
import trimesh

from render import gbuffer
from render.camera import orbit
from render.gbuffer import rasterize_gbuffer, surface_points
from render.kernels import gbuffer_triton
from render.kernels.vec3_triton import BLOCK
from render.mesh import face_cross, make_mesh
from render.raster.select import choose_rasteriser

SIZE = 3, 9, 8


def random_points(device, count: int = BLOCK + 37, faces_as=torch.int64) -> dict[str, torch.Tensor]:
    """Return random surface points of three views, including both sides of faces and grazing angles."""
    generator = torch.Generator().manual_seed(7)
    v_pos = torch.randn(40, 3, generator=generator)
    faces = torch.stack([torch.randperm(40, generator=generator)[:3] for _ in range(50)])
    pixel = torch.randperm(math.prod(SIZE), generator=generator)[:count]
    number = torch.randint(1, 51, (count,), generator=generator)
    rast = torch.zeros(math.prod(SIZE), 4)
    rast[pixel, 3] = number.float()
    camera = 5 * torch.nn.functional.normalize(torch.randn(3, 3, generator=generator), dim=-1)
    position = 0.3 * torch.randn(math.prod(SIZE), 3, generator=generator)
    view = camera.repeat_interleave(math.prod(SIZE[1:]), 0) - position
    aside = torch.linalg.cross(view, torch.randn(view.shape, generator=generator))
    lean = 0.3 * torch.rand(len(view), 1, generator=generator) - 0.15
    smooth = torch.nn.functional.normalize(aside, dim=-1) + lean * torch.nn.functional.normalize(view, dim=-1)
    given = {
        "values": torch.cat([position, 0.8 * smooth], -1).view(*SIZE, 6),
        "rast": rast.view(*SIZE, 4),
        "pixel": pixel,
        "faces": faces.to(faces_as),
        "v_pos": v_pos,
        "camera": camera,
    }
    return {name: value.to(device) for name, value in given.items()}


def values_and_gradients(
    function, given, wanted=("position", "normal", "to_viewer")
) -> dict[str, torch.Tensor]:
    """Return the outputs of the function and the gradients of a weighted sum of the `wanted` outputs."""
    given = given | {name: given[name].clone().requires_grad_() for name in ("values", "v_pos")}
    found = dict(zip(("position", "normal", "to_viewer"), function(**given), strict=True))
    generator = torch.Generator().manual_seed(8)
    weights = {name: torch.randn(value.shape, generator=generator).to(value) for name, value in found.items()}
    total = sum((found[name] * weights[name]).sum() for name in wanted)
    grads = torch.autograd.grad(total, (given["values"], given["v_pos"]), allow_unused=True)
    found = {name: value.detach() for name, value in found.items()}
    return found | dict(zip(("values", "v_pos"), grads, strict=True))


def to_float64(given):
    return {name: value.double() if value.is_floating_point() else value for name, value in given.items()}


def assert_agree(found, exact, tolerance: float = 1e-5) -> None:
    for name, value in found.items():
        expected = torch.zeros_like(value) if exact[name] is None else exact[name]
        assert value.dtype == torch.float32, name
        assert (value - expected).abs().max() <= tolerance * expected.abs().max(), name


def facing_ratios(given) -> torch.Tensor:
    """Compute cos(view, smooth) / 0.1 for each pixel, multiplied by the sign of view·face."""
    number = given["rast"].flatten(0, 2)[given["pixel"], 3].long() - 1
    a, b, c = given["v_pos"][given["faces"][number].long()].unbind(1)
    position, smooth = given["values"].flatten(0, 2)[given["pixel"]].split(3, -1)
    view = given["camera"][given["pixel"] // math.prod(SIZE[1:])] - position
    side = (torch.linalg.cross(b - a, c - a) * view).sum(-1).sign()
    return torch.nn.functional.cosine_similarity(smooth, view) * side / 0.1


@pytest.mark.parametrize("faces_as", [torch.int32, torch.int64])
def test_points_at_all_angles(faces_as, kernel_device):
    given = random_points(kernel_device, faces_as=faces_as)
    ratio = facing_ratios(given)
    assert all(
        amount > 15 for amount in ((ratio < 0).sum(), (ratio > 1).sum(), (ratio.frac() == ratio).sum())
    )
    assert_agree(
        values_and_gradients(gbuffer_triton.surface_points, given),
        values_and_gradients(surface_points, to_float64(given)),
    )


@pytest.mark.parametrize("wanted", ["position", "normal", "to_viewer"])
def test_gradient_of_a_single_output(wanted, kernel_device):
    given = random_points(kernel_device)
    found = values_and_gradients(gbuffer_triton.surface_points, given, [wanted])
    assert_agree(found, values_and_gradients(surface_points, to_float64(given), [wanted]))


@pytest.mark.parametrize("wanted", ["values", "v_pos"])
def test_gradient_to_a_single_input(wanted, kernel_device):
    given = random_points(kernel_device, 30)
    given[wanted].requires_grad_()
    weights = torch.arange(90.0, device=kernel_device).view(30, 3)
    found, expected = (
        torch.autograd.grad((function(**given)[1] * weights).sum(), given[wanted])[0]
        for function in (gbuffer_triton.surface_points, surface_points)
    )
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max() > 0


def test_no_graph_without_a_gradient(kernel_device):
    given = random_points(kernel_device, 3)
    assert all(value.grad_fn is None for value in gbuffer_triton.surface_points(**given))


def test_points_without_normals(kernel_device):
    given = random_points(kernel_device)
    for function in (gbuffer_triton.surface_points, surface_points):
        expected = function(**given)
        position, normal, to_viewer = function(**given, normals=False)
        assert normal is None
        assert torch.equal(position, expected[0]) and torch.equal(to_viewer, expected[2])


def test_no_covered_pixel(kernel_device):
    given = random_points(kernel_device, 0)
    found = values_and_gradients(gbuffer_triton.surface_points, given)
    assert all(found[name].shape == (0, 3) for name in ("position", "normal", "to_viewer"))
    assert not found["values"].any() and not found["v_pos"].any()


def points_at_origin(smooth, corners, device) -> dict[str, torch.Tensor]:
    """Return a row of points at the origin, seen from (0, 0, 1). smooth: [N,3], corners: [N,3,3]."""
    count = len(smooth)
    rast = torch.zeros(1, 1, count, 4)
    rast[..., 3] = torch.arange(count) + 1
    given = {
        "values": torch.cat([torch.zeros(count, 3), torch.as_tensor(smooth)], -1).view(1, 1, count, 6),
        "rast": rast,
        "pixel": torch.arange(count),
        "faces": torch.arange(3 * count).view(count, 3),
        "v_pos": torch.as_tensor(corners).reshape(-1, 3),
        "camera": torch.tensor([[0.0, 0.0, 1.0]]),
    }
    return {name: value.to(device) for name, value in given.items()}


SLANTED = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.5], [0.0, 2.0, -0.25]]


def test_gradient_at_blend_factors_0_and_1(kernel_device):
    """Some blend factors are exactly 0 or 1, where clamp still has a gradient. Others are close to 0 or 1."""
    height = torch.tensor(0.1).view(torch.int32) + torch.arange(-3, 4, dtype=torch.int32)
    height = torch.cat([torch.tensor([-1e-6, 0.0, 1e-6]), height.view(torch.float32)])
    smooth = torch.stack([(1 - height.square()).sqrt(), torch.zeros(10), height], -1)
    ratio = torch.nn.functional.normalize(smooth, dim=-1)[:, 2] / 0.1
    assert (ratio == 0).sum() == 1 and (ratio == 1).any() and (ratio < 1).sum() > 2 and (ratio > 1).any()
    given = points_at_origin(smooth, torch.tensor(SLANTED).expand(10, 3, 3), kernel_device)
    found = values_and_gradients(gbuffer_triton.surface_points, given)
    expected = values_and_gradients(surface_points, given)
    assert_agree(found, expected)
    # Each point is compared separately, so a missing gradient at one point is found.
    assert torch.allclose(found["values"], expected["values"], rtol=1e-4, atol=1e-5)


def test_degenerate_faces_and_zero_normals(kernel_device):
    smooth = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.03], [0.0, 0.0, 0.0], [1.0, 0.0, -0.5]])
    line = [[0.0, 0.0, 0.0], [1.0, 1.0, 2.0], [2.0, 2.0, 4.0]]
    given = points_at_origin(
        smooth, torch.tensor([line, line, SLANTED, [[1.0, 2.0, 3.0]] * 3]), kernel_device
    )
    found = values_and_gradients(gbuffer_triton.surface_points, given)
    expected = values_and_gradients(surface_points, given)
    assert_agree(found, expected)
    for grads in (found, expected):
        assert all(value.isfinite().all() for value in grads.values())
        # A zero vector has no direction and gets no gradient. The third smooth normal is a zero vector, and
        # so are the normals of all faces except the third.
        assert not grads["values"][0, 0, 2, 3:].any() and grads["values"][0, 0, 1, 3:].any()
        assert not grads["v_pos"].view(4, 3, 3)[[0, 1, 3]].any() and grads["v_pos"].any()


def test_gradient_equals_finite_differences(kernel_device):
    """The finite differences use float32.

    Pixels with a blend factor near the bounds of its clamp are excluded, because the gradient jumps there.
    """
    given = random_points(kernel_device)
    away = facing_ratios(given)
    away = (away.abs() > 0.1) & ((away - 1).abs() > 0.1)
    given["pixel"] = given["pixel"][away]
    names = ("values", "v_pos")
    grads = values_and_gradients(gbuffer_triton.surface_points, given)
    generator = torch.Generator().manual_seed(9)
    moves = {name: torch.randn(given[name].shape, generator=generator).to(kernel_device) for name in names}
    sums = []
    for step in (1e-3, -1e-3):
        moved = given | {name: given[name] + step * moves[name] for name in names}
        found = gbuffer_triton.surface_points(**moved)
        generator = torch.Generator().manual_seed(8)
        weights = [torch.randn(value.shape, generator=generator).to(value) for value in found]
        sums.append(sum((a * b).double().sum() for a, b in zip(found, weights, strict=True)))
    change = (sums[0] - sums[1]).item() / 2e-3
    assert sum((grads[name] * moves[name]).sum() for name in names).item() == pytest.approx(change, rel=1e-2)


def points_from_kernels_and_torch(device, size, batch, subdivisions, monkeypatch):
    """Yield surface points and vertex gradient of a dented ball, first from the kernels, then from torch."""
    shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.7)
    places = torch.tensor(shape.vertices).float()
    places = (places * (1 + 0.3 * (9 * places).sin().prod(-1, keepdim=True))).to(device)
    faces, views = torch.tensor(shape.faces).to(device), orbit(batch, size).to(device)
    for kernels in (True, False):
        monkeypatch.setattr(gbuffer, "triton_available", lambda *values, answer=kernels: answer)
        v_pos = places.clone().requires_grad_()
        points = rasterize_gbuffer(make_mesh(v_pos, faces), views, choose_rasteriser(device))
        weights = torch.randn(len(points.pixel), 9, generator=torch.Generator().manual_seed(2)).to(device)
        # If a face is almost parallel to the view direction, rounding decides which of its sides is visible.
        # Pixels of such faces have weight 0, because the kernels and torch can differ there.
        number = points.gather(points.rast.detach())[:, 3].long() - 1
        face = torch.nn.functional.normalize(face_cross(places, faces)[number], dim=-1)
        weights[(face * points.to_viewer.detach()).sum(-1).abs() < 1e-4] = 0
        total = (torch.cat([points.position, points.normal, points.to_viewer], -1) * weights).sum()
        assert ("SurfacePoints" in type(points.normal.grad_fn).__name__) == kernels
        yield points, torch.autograd.grad(total, v_pos)[0]


def test_rasterised_points_equal_torch(kernel_device, monkeypatch):
    (found, grad), (expected, exact) = points_from_kernels_and_torch(
        kernel_device, (24, 32), 2, 2, monkeypatch
    )
    assert torch.equal(found.pixel, expected.pixel) and len(found.pixel) > 300
    for name in ("position", "normal", "to_viewer"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-5)
    assert (grad - exact).norm() < 1e-4 * exact.norm()


@pytest.mark.gpu
def test_full_size_points_equal_torch_on_cuda(monkeypatch):
    both = points_from_kernels_and_torch(torch.device("cuda"), (512, 512), 4, 7, monkeypatch)
    (found, grad), (expected, exact) = both
    assert torch.equal(found.pixel, expected.pixel) and len(found.pixel) > 200_000
    assert torch.allclose(found.position, expected.position, atol=1e-6)
    assert torch.allclose(found.to_viewer, expected.to_viewer, atol=1e-6)
    turned = ((found.normal - expected.normal).abs() > 1e-4).any(-1)
    assert turned.sum() < 10
    assert (grad - exact).norm() < 1e-3 * exact.norm()
