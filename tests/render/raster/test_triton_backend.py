"""Compile the Triton rasteriser, and compare faces, values, pixel pairs and gradients with the reference."""

import pytest
import torch
from triton_compile import run_without_interpreter

from render.camera import orbit, transform_points
from render.raster import silhouette
from render.raster.reference import ReferenceRasteriser

backend = pytest.importorskip("render.raster.triton.backend", exc_type=ImportError)


def small_and_large_faces(bumpy_sphere):
    """Return faces that are smaller than a pixel, as large as the image, or partly behind the camera."""
    vertices, faces = bumpy_sphere(3)
    clip = transform_points(orbit(2, (40, 56)).world_to_clip, vertices * 0.4)
    big = torch.tensor(
        [[-3.0, -2.0, 0.99, 1.0], [2.0, -2.0, 0.97, 1.0], [0.1, 3.0, 0.98, 1.1]]
        + [[-9.0, 4.0, 2.0, 3.0], [8.0, 5.0, 2.5, 3.0], [0.3, 2.0, -1.0, -1.5]]
    )
    clip = torch.cat([clip, big.expand(2, 6, 4)], 1)
    return clip, torch.cat([torch.arange(6).view(2, 3) + len(vertices), faces]), (40, 56)


def soup():
    """Return triangles on all sides of the camera. Some triangles have a repeated vertex."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 90, 4, generator=generator),
        torch.randint(0, 90, (60, 3), generator=generator),
        (33, 20),
    )


def full_lists():
    """Return equal numbers of medium and large faces. Together, the lists of both sizes fill the buffer."""
    generator = torch.Generator().manual_seed(1)
    centre = 0.5 * (2 * torch.rand(40, 1, 2, generator=generator) - 1)
    size = torch.where(torch.arange(40) % 2 == 0, 0.12, 0.45)[:, None, None]
    corners = centre + size * torch.tensor([[-1.0, -1.0], [1.0, -0.9], [0.1, 1.0]])
    depth = torch.rand(40, 1, 1, generator=generator).expand(40, 3, 1) - 0.5
    clip = torch.cat([corners, depth, torch.ones(40, 3, 1)], -1).reshape(1, 120, 4)
    return torch.cat([clip, clip.flip(1)]), torch.arange(120).view(40, 3), (48, 48)


def test_full_lists_scene_fills_both_lists():
    config, (clip, faces, (height, width)) = backend.launch_config_for(torch.zeros(1)), full_lists()
    corners = (clip[:, faces][..., :2] + 1) / 2 * torch.tensor([width, height])
    low, high = corners.amin(2).sub(0.5).ceil(), corners.amax(2).sub(0.5).floor()
    pixels = (high - low + 1).prod(-1)
    assert (pixels > config.small_box).all()
    assert 0.4 < (pixels > config.medium_box).float().mean() < 0.6


def many_views(bumpy_sphere):
    """Return more views than one word of the kernel's bit masks can represent.

    The image sizes are powers of two, for which the kernels compute pixel centres by a product instead of a
    quotient.
    """
    vertices, faces = bumpy_sphere(1)
    return transform_points(orbit(19, (8, 16)).world_to_clip, vertices), faces.int(), (8, 16)


@pytest.fixture(scope="module", params=["small and large", "soup", "full lists", "many views"])
def scene(request, bumpy_sphere, kernel_device):
    build = {
        "small and large": lambda: small_and_large_faces(bumpy_sphere),
        "soup": soup,
        "full lists": full_lists,
    }
    clip, faces, resolution = build.get(request.param, lambda: many_views(bumpy_sphere))()
    return clip.to(kernel_device), faces.to(kernel_device), resolution


def assert_same_step(expected, got, rtol=1e-4, atol=1e-5):
    assert torch.equal(expected["rast"][..., 3], got["rast"][..., 3])
    for name, value in expected.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(
            got[name], value, rtol=rtol, atol=atol * value.abs().max().item(), msg=name
        )


def test_same_values_and_gradients(scene, whole_step):
    assert_same_step(whole_step(ReferenceRasteriser(), scene), whole_step(backend.TritonRasteriser(), scene))


def test_same_pairs(scene):
    """The crossing of each pixel pair is decoded from `winners` and compared with the reference."""
    clip, faces, (height, width) = scene
    rast = ReferenceRasteriser().rasterize(clip, faces, (height, width))
    edges = backend.build_edge_table(faces, clip.shape[1])
    results = backend.find_pairs(rast, clip, faces, edges)
    keys = results.winners.flatten(2)
    view, axis, place = (keys >= 0).nonzero().unbind(-1)
    key = keys[view, axis, place]
    first = view * height * width + place
    second = first + torch.where(axis == 0, 1, width)
    inner, outer = torch.where(key & 1 > 0, second, first), torch.where(key & 1 > 0, first, second)
    edge = half_edges(faces)[(key >> 1) & (2**26 - 1)]
    got = torch.stack([inner, outer, edge.amin(-1), edge.amax(-1), view, axis], -1)
    pairs = silhouette.find_pairs(rast, clip, silhouette.build_edges(faces))
    expected = torch.stack([pairs.inner, pairs.outer, *pairs.edge.unbind(-1), pairs.view, pairs.axis], -1)
    assert len(expected) > 20 and torch.equal(got, expected)
    list_items = results.pixels[: int(results.count)].sort().values
    assert torch.equal(list_items, torch.cat([inner, outer]).unique())


def half_edges(faces):
    """Return the vertices [3F,2] of each half-edge in the direction of its face."""
    return torch.stack([faces.long().roll(-1, 1), faces.long().roll(-2, 1)], -1).reshape(-1, 2)


def test_half_edges_are_grouped_by_their_smaller_vertex(scene):
    clip, faces, _ = scene
    table = backend.build_edge_table(faces, clip.shape[1])
    ends = half_edges(faces)
    low, high, ascends = ends.amin(-1), ends.amax(-1), ends[:, 0] < ends[:, 1]
    real = (low != high).nonzero()[:, 0]
    groups = table.groups[: len(real)]
    half = (groups & 0xFFFFFFFF) >> 1
    assert torch.equal(half.sort().values, real)
    assert torch.equal(groups >> 32, high[half]) and torch.equal((groups & 1) > 0, ascends[half])
    assert torch.equal(low[half], low[real].sort().values)
    counts = torch.bincount(low[real], minlength=clip.shape[1])
    assert torch.equal(table.starts.diff(), counts.int()) and table.starts[0] == 0


def test_listed_silhouettes_equal_the_reference(scene):
    """A silhouette edge of any number of faces is listed once per view, with its smallest half-edge."""
    clip, faces, _ = scene
    # Faces with a repeated vertex are removed, because rounding decides on which side of an edge they lie.
    faces = faces[(faces != faces.roll(1, 1)).all(1)]
    faces = torch.cat([faces, faces[:3], faces[3:5].flip(1)])
    items = list_silhouettes(clip, faces)
    view, half, plus = items >> 32, (items & 0xFFFFFFFF) >> 1, items & 1
    ends = half_edges(faces)[half]
    got = torch.stack([view, ends.amin(-1), ends.amax(-1), 2 * plus - 1], -1)
    edges = silhouette.build_edges(faces)
    view, edge, side = silhouette.silhouette_edges(clip.double(), edges)
    expected = torch.cat([view[:, None], edges.vertices[edge], side[:, None].long()], -1)
    assert len(expected) > 20 and torch.equal(got.unique(dim=0), expected.unique(dim=0))
    assert len(got) == len(expected)
    low, high = half_edges(faces).amin(-1), half_edges(faces).amax(-1)
    for number in half[:20].tolist():
        assert number == ((low == low[number]) & (high == high[number])).nonzero()[0]


def list_silhouettes(clip, faces):
    """Return the list of silhouettes that find_pairs passes to find_crossings."""
    lists = []

    class Recorded:
        def __getitem__(self, grid):
            return lambda clip, rast, faces, items, count, *rest, **options: lists.append(items[:count])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend.silhouette, "find_crossings", Recorded())
        rast = torch.zeros(len(clip), 4, 4, 4, device=clip.device)
        backend.find_pairs(rast, clip, faces, backend.build_edge_table(faces, clip.shape[1]))
    return lists[0]


@pytest.mark.parametrize("scene", ["soup"], indirect=True)
def test_no_gradient_is_computed_for_fixed_inputs(scene):
    clip, faces, resolution = scene
    rasteriser = backend.TritonRasteriser()
    attributes = torch.rand(clip.shape[1], 3, device=clip.device, requires_grad=True)
    rast = rasteriser.rasterize(clip, faces, resolution)
    image = rasteriser.interpolate(attributes, rast, faces)
    rasteriser.antialias(image, rast, clip, faces).sum().backward()
    assert clip.grad is None and attributes.grad.any()
    fixed = attributes.detach()
    moving = clip.clone().requires_grad_()
    rast = rasteriser.rasterize(moving, faces, resolution)
    expected = ReferenceRasteriser().interpolate(fixed, rast, faces)
    got = rasteriser.interpolate(fixed, rast, faces)
    expected, got = (torch.autograd.grad((i * i).sum(), rast)[0] for i in (expected, got))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_self_test_finds_a_wrong_result(kernel_device, monkeypatch):
    backend.self_test(kernel_device)
    right = backend.TritonRasteriser.antialias
    monkeypatch.setattr(
        backend.TritonRasteriser,
        "antialias",
        lambda self, colour, *rest: right(self, 1.01 * colour, *rest),
    )
    with pytest.raises(ArithmeticError):
        backend.self_test(kernel_device)


COMPILE = """
from dataclasses import replace
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type
compiled = {}

def run(self, *args, grid, warmup, **kwargs):
    options = {k: kwargs.pop(k) for k in ("num_warps", "enable_fp_fusion") if k in kwargs}
    given = dict(zip(self.arg_names, args)) | kwargs
    constant = {p.name for p in self.params if p.is_constexpr} | {k for k, v in given.items() if v is None}
    signature = {n: "constexpr" if n in constant else mangle_type(given[n]) for n in self.arg_names}
    values = {(i,): given[n] for i, n in enumerate(self.arg_names) if n in constant}
    source = ASTSource(self, signature, constexprs=values)
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    compiled.setdefault(self.fn.__name__, []).append("fma.rn.f64" in kernel.asm["ptx"])

JITFunction.run = run
from render.raster.triton import backend
from render.raster.triton import launch_config
clip = torch.rand(2, 9, 4, requires_grad=True)
faces = torch.zeros(5, 3, dtype=torch.int32)
for part in (True, False):
    many_faces = 0 if part else 100
    launch_config.INTERPRETER_CONFIG = replace(launch_config.GPU_CONFIG, many_faces=many_faces)
    rasteriser = backend.TritonRasteriser()
    moving = clip if part else clip.detach()
    attributes = torch.rand(9, 6, requires_grad=True)
    rast = rasteriser.rasterize(moving, faces, (16, 32))
    image = rasteriser.interpolate(attributes, rast, faces)
    rasteriser.antialias(image, rast, moving, faces).sum().backward()
rast = rasteriser.rasterize(clip, faces.long(), (16, 32))
rasteriser.interpolate(attributes.detach(), rast, faces).sum().backward()
print(*sorted(compiled))
print(*sorted(name for name, fused in compiled.items() if any(fused)))
"""


def test_kernels_compile_for_a_gpu():
    """All kernels of a step compile without a GPU. Kernels that assign pixels use no fused multiply-adds."""
    names, fused = run_without_interpreter(COMPILE)[-2:]
    drawn = {"draw_small_faces", "draw_listed_faces", "resolve"}
    seen = {"count_half_edges", "group_half_edges", "mark_faces", "list_silhouettes", "find_crossings"}
    backward = {"resolve_backward", "interpolate_backward", "blend_backward"}
    assert set(names.split()) == drawn | seen | backward | {"interpolate", "list_pixels", "blend"}
    assert set(fused.split()) <= {"resolve_backward"}


# The following tests use meshes and images of realistic sizes.


@pytest.fixture(scope="module")
def large_scene(request):
    from benchmarks.stages import sphere

    mesh = sphere(request.param)
    clip = transform_points(orbit(6, (512, 512)).world_to_clip, mesh.v_pos)
    return clip.cuda(), mesh.faces.cuda(), (512, 512)


@pytest.mark.gpu
@pytest.mark.parametrize("large_scene", [1_000, 20_000, 130_000, 700_000], indirect=True)
def test_real_sizes_equal_the_reference(large_scene, whole_step):
    expected = whole_step(ReferenceRasteriser(), large_scene)
    got = whole_step(backend.TritonRasteriser(), large_scene)
    same = expected["rast"][..., 3] == got["rast"][..., 3]
    assert same.all()
    torch.testing.assert_close(got["rast"], expected["rast"], rtol=1e-5, atol=1e-6)
    for name in ("image", "smooth", "through", "outline", "attributes", "positions"):
        assert (got[name] - expected[name]).norm() < 1e-4 * expected[name].norm(), name


@pytest.mark.gpu
@pytest.mark.parametrize("large_scene", [20_000, 130_000], indirect=True)
def test_real_sizes_equal_nvdiffrast(large_scene, record_property):
    pytest.importorskip("nvdiffrast.torch", exc_type=ImportError)
    from render.raster.nvdiffrast_backend import NvdiffrastRasteriser

    clip, faces, resolution = large_scene
    expected = NvdiffrastRasteriser("cuda").rasterize(clip, faces, resolution)
    got = backend.TritonRasteriser().rasterize(clip, faces, resolution)
    same = expected[..., 3] == got[..., 3]
    record_property("share_of_equal_ids", same.float().mean().item())
    covered = (got[..., 3] > 0).float()[:, None]
    mean = torch.nn.functional.avg_pool2d(covered, 3, 1, 1, count_include_pad=False)[:, 0]
    away = (mean == 0) | (mean == 1)
    assert (expected[..., 3] > 0).eq(got[..., 3] > 0)[away].all()
    # nvdiffrast rounds vertices to a fraction of a pixel. For faces as small as these, the rounding changes
    # the ids of many pixels.
    assert same.float().mean() > 0.9
    seen = same & (got[..., 3] > 0)
    torch.testing.assert_close(got[seen][:, 2], expected[seen][:, 2], atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("large_scene", [130_000], indirect=True)
def test_result_is_deterministic(large_scene, whole_step):
    """Images are equal bit for bit. Gradients may differ by rounding, as the order of summation varies."""
    rasteriser = backend.TritonRasteriser()
    first, second = whole_step(rasteriser, large_scene), whole_step(rasteriser, large_scene)
    for name in ("rast", "image", "smooth"):
        assert torch.equal(first[name], second[name]), name
    for name in ("through", "outline", "attributes", "positions"):
        assert (first[name] - second[name]).norm() < 1e-5 * first[name].norm(), name


@pytest.mark.gpu
def test_no_host_synchronisation(bumpy_sphere):
    vertices, faces = bumpy_sphere(4)
    clip = transform_points(orbit(2, (64, 64)).world_to_clip, vertices).cuda().requires_grad_()
    attributes, faces = vertices.cuda().requires_grad_(), faces.cuda()

    def step():
        rasteriser = backend.TritonRasteriser()
        rast = rasteriser.rasterize(clip, faces, (64, 64))
        image = rasteriser.interpolate(attributes, rast, faces)
        rasteriser.antialias(image, rast, clip, faces).sum().backward()

    step()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
