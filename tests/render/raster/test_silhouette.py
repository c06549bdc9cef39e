"""Test the antialiasing of silhouettes: exact cases, finite differences, occlusion and topology."""

import math

import pytest
import torch

from render.camera import look_at_origin, orbit, transform_points
from render.raster.reference import ReferenceRasteriser
from render.raster.silhouette import CachedByFaces, build_edges


def mask_of(rasteriser, clip, faces, resolution):
    """Return the antialiased coverage [B,H,W,1]."""
    rast = rasteriser.rasterize(clip, faces, resolution)
    return rasteriser.antialias((rast[..., 3:] > 0).to(clip.dtype), rast, clip, faces)


def supersampled(rasteriser, clip, faces, resolution, factor):
    """Return the coverage [B,H,W,1] as the mean of factor² samples per pixel."""
    fine = rasteriser.rasterize(clip.detach(), faces, (resolution[0] * factor, resolution[1] * factor))
    hard = (fine[..., 3] > 0).float()[:, None]
    return torch.nn.functional.avg_pool2d(hard, factor).permute(0, 2, 3, 1)


def rectangle(left, top, right, bottom, size, z=0.0):
    """Return clip [4,4] of an axis-aligned rectangle that is given in pixel coordinates."""
    order = ((left, top), (right, top), (right, bottom), (left, bottom))
    corners = torch.stack([torch.stack(point) for point in order])
    xy = corners * 2 / size - 1
    return torch.cat([xy, torch.full((4, 1), z), torch.ones(4, 1)], -1)


QUAD = torch.tensor([[0, 1, 2], [0, 2, 3]])


@pytest.mark.parametrize("sides", [(3.2, 5.3, 11.6, 12.9), (3.2, 5.7, 11.4, 12.9)])
def test_upright_rectangle_is_covered_exactly(rasteriser, sides):
    """Pixel values and their derivatives equal the covered area and its derivatives.

    A pixel that contains a corner of the rectangle is checked only if the centre of the pixel is covered.
    """
    sides = torch.tensor(sides, requires_grad=True)
    mask = mask_of(rasteriser, rectangle(*sides, 16)[None], QUAD, (16, 16))[0, ..., 0]
    grid = torch.arange(16.0)
    across = (torch.minimum(grid + 1, sides[2]) - torch.maximum(grid, sides[0])).clamp(min=0)
    down = (torch.minimum(grid + 1, sides[3]) - torch.maximum(grid, sides[1])).clamp(min=0)
    exact = down[:, None] * across[None]
    # A pixel that contains a corner is excluded if the rectangle covers less than half of its width or less
    # than half of its height, because such a pixel is drawn completely empty or full.
    rough = (down < 0.5)[:, None] & (across[None] > 0) | (across < 0.5)[None] & (down[:, None] > 0)
    corner = ((down > 0) & (down < 1))[:, None] & ((across > 0) & (across < 1))[None]
    counts = (~(rough & corner)).float()
    assert counts.sum() >= 16 * 16 - 3
    assert ((mask - exact) * counts).abs().max() < 1e-5
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) * counts
    (got,) = torch.autograd.grad((mask * weight).sum(), sides, retain_graph=True)
    (expected,) = torch.autograd.grad((exact * weight).sum(), sides)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_strip_narrower_than_a_pixel(rasteriser):
    """If both edges of the strip lie within one pixel, the value of the pixel is the width of the strip."""
    sides = torch.tensor([4.2, 0.0, 4.6, 16.0])
    mask = mask_of(rasteriser, rectangle(*sides, 16)[None], QUAD, (16, 16))
    torch.testing.assert_close(mask[0, 1:-1, 4, 0], torch.full((14,), 0.4), atol=1e-5, rtol=0)


def finite_differences(rasteriser, clip_of, start, faces, weights, *, step, factor):
    """Compute d Σ mask·weight / d parameter [N,P] by central differences. weights: [N,B,H,W,1]."""
    resolution, columns = weights.shape[2:4], []
    for index in range(len(start)):
        shift = torch.zeros_like(start)
        shift[index] = step
        higher, lower = (
            supersampled(rasteriser, clip_of(start + sign * shift), faces, resolution, factor)
            for sign in (1, -1)
        )
        columns.append(((higher - lower)[None] * weights).sum((1, 2, 3, 4)) / (2 * step))
    return torch.stack(columns, -1)


@pytest.mark.parametrize(("subdivisions", "size"), [(3, 64), (4, 64), (4, 128), (5, 128)])
def test_gradient_of_the_outline(numba_rasteriser, bumpy_sphere, subdivisions, size, record_property):
    """Gradients of translation and scale equal finite differences for 1,280 to 20,480 faces."""
    vertices, faces = bumpy_sphere(subdivisions)
    cameras = orbit(4, (size, size))
    noise = torch.randn(16, 4, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    weights = torch.stack(
        [
            torch.nn.functional.interpolate(n, size=(size, size), mode="bicubic", align_corners=True)
            for n in noise
        ]
    ).permute(0, 1, 3, 4, 2)

    def clip_of(parameters):
        return transform_points(cameras.world_to_clip, vertices * parameters[3] + parameters[:3])

    start = torch.tensor([0.01, 0.003, 0.0, 1.0], requires_grad=True)
    mask = mask_of(numba_rasteriser, clip_of(start), faces, (size, size))
    got = torch.stack(
        [torch.autograd.grad((mask * weight).sum(), start, retain_graph=True)[0] for weight in weights]
    )
    factor = 1024 // size
    expected = finite_differences(
        numba_rasteriser, clip_of, start.detach(), faces, weights, step=0.008, factor=factor
    )
    length = (got.norm() / expected.norm()).item()
    error = ((got - expected).norm() / expected.norm()).item()
    record_property("gradient_length_ratio", round(length, 4))
    record_property("gradient_relative_error", round(error, 4))
    assert abs(length - 1) < 0.02
    assert error < 0.05


@pytest.mark.parametrize(("subdivisions", "size"), [(3, 64), (5, 64), (4, 128)])
def test_mask_error_falls_at_least_fourfold(numba_rasteriser, bumpy_sphere, subdivisions, size):
    vertices, faces = bumpy_sphere(subdivisions)
    clip = transform_points(orbit(4, (size, size)).world_to_clip, vertices)
    truth = supersampled(numba_rasteriser, clip, faces, (size, size), 8)
    hard = (numba_rasteriser.rasterize(clip, faces, (size, size))[..., 3:] > 0).float()
    smooth = mask_of(numba_rasteriser, clip, faces, (size, size))
    assert smooth.min() >= 0 and smooth.max() <= 1
    assert (smooth - truth).abs().sum() * 4 < (hard - truth).abs().sum()


def test_gradcheck(fast_rasteriser):
    """The gradients of colour, and of x, y and w of edge ends, are checked in float64."""
    generator = torch.Generator().manual_seed(4)
    clip = torch.tensor(
        [[-0.61, -0.72, 0.1, 1.0], [1.32, -0.93, 0.3, 2.0], [0.13, 0.74, 0.2, 1.2], [-0.9, 0.8, 0.4, 1.1]],
        dtype=torch.float64,
    )[None].requires_grad_()
    faces = torch.tensor([[0, 1, 2], [2, 3, 0]])
    rast = fast_rasteriser.rasterize(clip, faces, (6, 7)).detach()
    colour = torch.rand(1, 6, 7, 1, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda colour, clip: fast_rasteriser.antialias(colour, rast, clip, faces),
        (colour, clip),
        nondet_tol=1e-9,
    )


def test_fit_of_a_moved_disc(numba_rasteriser, disc):
    """Adam recovers centre and radius of a target silhouette from the gradient of the outline."""
    clip, faces = disc(0.5)
    target = supersampled(
        numba_rasteriser,
        clip * torch.tensor([1.2, 1.2, 1, 1]) + torch.tensor([0.13, -0.09, 0, 0]),
        faces,
        (64, 64),
        8,
    )
    place = torch.tensor([0.0, 0.0, 1.0], requires_grad=True)
    optimiser = torch.optim.Adam([place], lr=0.02)
    for step in range(100):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / 100)
        xy = clip[..., :2] * place[2] + place[:2]
        mask = mask_of(numba_rasteriser, torch.cat([xy, clip[..., 2:]], -1), faces, (64, 64))
        optimiser.zero_grad()
        (mask - target).square().sum().backward()
        optimiser.step()
    # The tolerance 0.002 is 1/16 of a pixel.
    torch.testing.assert_close(place.detach(), torch.tensor([0.13, -0.09, 1.2]), atol=2e-3, rtol=0)


def test_hidden_silhouettes_do_not_blend(rasteriser, disc):
    """A disc behind a larger one has no effect and no gradient."""
    front, faces = disc(0.7)
    # The front disc is tilted, so its pixels on both sides of a hidden edge differ in depth. This difference
    # must not cause a blend.
    front[..., 2] = 0.1 * front[..., 0] + 0.07 * front[..., 1]
    behind = disc(0.4)[0] + torch.tensor([0.0, 0.0, 0.5, 0.0])
    clip = torch.cat([front, behind], 1).requires_grad_()
    both = torch.cat([faces, faces + front.shape[1]])
    rast = rasteriser.rasterize(clip, both, (32, 32))
    # A different colour in each pixel makes any blend visible.
    colour = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    image = rasteriser.antialias(colour, rast, clip, both)
    alone = rasteriser.antialias(colour, rast, front, faces)
    assert torch.equal(image, alone)
    image.square().sum().backward()
    assert (clip.grad[:, front.shape[1] :] == 0).all()
    assert clip.grad[:, : front.shape[1]].abs().sum() > 1


def test_sliver_between_pixel_centres(rasteriser):
    """A thin strip in front of the border of a wall never decreases the mask."""
    wall = rectangle(*torch.tensor([7.9, -4.0, 20.0, 20.0]), 16, z=0.5)
    strip = rectangle(*torch.tensor([7.7, -4.0, 8.45, 20.0]), 16)
    clip, faces = torch.cat([wall, strip])[None], torch.cat([QUAD, QUAD + 4])
    alone = mask_of(rasteriser, wall[None], QUAD, (16, 16))
    both = mask_of(rasteriser, clip, faces, (16, 16))
    assert (both >= alone).all()


def test_object_in_front_of_an_object(rasteriser, disc):
    """The outline of the front disc blends the colours of disc and wall.

    The gradient that results from this outline equals that of the area of the front disc.
    """
    front, faces = disc(0.53)
    wall = disc(1.2)[0] + torch.tensor([0.0, 0.0, 0.5, 0.0])
    scale = torch.tensor(1.0, requires_grad=True)
    moved = torch.cat([front[..., :2] * scale, front[..., 2:]], -1)
    clip, both = torch.cat([moved, wall], 1), torch.cat([faces, faces + front.shape[1]])
    rast = rasteriser.rasterize(clip, both, (64, 64))
    seen = rast[..., 3:]
    colour = torch.where(seen > len(faces), 3.0, 2.0) * (seen > 0)
    image = rasteriser.antialias(colour, rast, clip, both)[:, 8:-8, 8:-8]
    # `area` is the area of the front polygon in pixels. The polygon has value 2 and the wall behind it has
    # value 3, so the sum of 3 − image is the area.
    area = 0.5 * 96 * math.sin(2 * math.pi / 96) * 0.53**2 * 32**2
    assert abs((3 - image).sum().item() - area) < 0.005 * area
    (3 - image).sum().backward()
    assert abs(scale.grad.item() - 2 * area) < 0.02 * 2 * area


def test_orientation_of_faces_does_not_matter(rasteriser, bumpy_sphere):
    vertices, faces = bumpy_sphere(1)
    clip = transform_points(orbit(2, (24, 24)).world_to_clip, vertices)
    flip = torch.rand(len(faces), generator=torch.Generator().manual_seed(0)) < 0.5
    turned = torch.where(flip[:, None], faces.flip(1), faces)
    torch.testing.assert_close(
        mask_of(rasteriser, clip, faces, (24, 24)), mask_of(rasteriser, clip, turned, (24, 24))
    )


@pytest.mark.parametrize(("third", "is_outline"), [((0.9, 0.0), False), ((-0.9, 0.0), True)])
def test_edge_with_three_faces(rasteriser, third, is_outline):
    """The edge is a silhouette only if all three faces lie on one side of it."""
    points = [(0.05, -0.9), (0.05, 0.9), (-0.7, 0.1), (-0.8, -0.2), third]
    clip = torch.tensor([[[x, y, 0.1 * i, 1.0] for i, (x, y) in enumerate(points)]], requires_grad=True)
    faces = torch.tensor([[0, 1, 2], [0, 1, 3], [1, 0, 4]])
    rast = rasteriser.rasterize(clip, faces, (32, 32))
    colour = torch.rand(1, 32, 32, 1, generator=torch.Generator().manual_seed(0))
    image = rasteriser.antialias(colour, rast, clip, faces)
    changed = (image != colour)[0, 8:24, 15:18, 0].any()
    assert changed == is_outline


def test_ground_that_extends_behind_the_camera(fast_rasteriser):
    """Part of the ground plane is behind the camera. The plane's outline is compared with supersampling."""
    cameras = look_at_origin(
        torch.tensor([0.4]), torch.tensor([0.1]), torch.tensor([0.9]), (48, 48), near_far=(0.1, 50.0)
    )
    corners = torch.tensor([[-4.0, -0.6, 9], [3, -0.6, 9], [5, -0.6, -6], [-2, -0.6, -9]])
    clip = transform_points(cameras.world_to_clip, corners).requires_grad_()
    assert (clip[..., 3] < 0).sum() == 2
    mask = mask_of(fast_rasteriser, clip, QUAD, (48, 48))
    truth = supersampled(fast_rasteriser, clip, QUAD, (48, 48), 16)
    hard = (fast_rasteriser.rasterize(clip, QUAD, (48, 48))[..., 3:] > 0).float()
    assert (hard - truth).abs().sum() > 4 * (mask - truth).abs().sum()
    mask.sum().backward()
    assert clip.grad.isfinite().all() and clip.grad.any()


def test_edge_table():
    """Each edge occurs once. An inner edge has two opposite corners, and a border edge has one."""
    faces = torch.tensor([[0, 1, 2], [0, 3, 1], [1, 3, 2], [4, 4, 1], [5, 6, 7]])
    edges = build_edges(faces)
    table = {
        tuple(pair): sorted(edges.opposite[a:b].tolist())
        for pair, a, b in zip(edges.vertices.tolist(), edges.start[:-1], edges.start[1:], strict=True)
    }
    assert table == {
        (0, 1): [2, 3],
        (0, 2): [1],
        (0, 3): [1],
        (1, 2): [0, 3],
        (1, 3): [0, 2],
        (2, 3): [1],
        (1, 4): [4, 4],
        (5, 6): [7],
        (5, 7): [6],
        (6, 7): [5],
    }


def test_cache_detects_new_and_modified_faces():
    build_rasteriser = []
    cache = CachedByFaces(lambda faces: build_rasteriser.append(faces.clone()) or len(build_rasteriser))
    faces = QUAD.clone()
    assert [cache(faces), cache(faces)] == [1, 1]
    faces[0, 0] = 3
    assert cache(faces) == 2
    assert cache(faces.clone()) == 3
    with torch.inference_mode():
        frozen = QUAD.clone()
    assert [cache(frozen), cache(frozen)] == [4, 5]


def test_reference_works_in_inference_mode(bumpy_sphere):
    vertices, faces = bumpy_sphere(1)
    with torch.inference_mode():
        clip = transform_points(orbit(1, (16, 16)).world_to_clip, vertices)
        assert mask_of(ReferenceRasteriser(), clip, faces, (16, 16)).max() == 1
