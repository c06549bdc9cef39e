"""Test every CPU backend: coverage, perspective, interpolation, texture and unusual input."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from render.camera import perspective

# The following tests check that the coverage is exact even if corners and edges of triangles lie on pixel
# centres.


def to_clip(pixels, resolution, z=0.0):
    """Convert pixel coordinates (x, y) [V,2] to clip [1,V,4] with w = 1."""
    size = torch.tensor([resolution[1], resolution[0]], dtype=torch.float64)
    xy = torch.as_tensor(pixels, dtype=torch.float64) * 2 / size - 1
    rest = torch.tensor([z, 1.0], dtype=torch.float64).expand(len(xy), 2)
    return torch.cat([xy, rest], -1).float()[None]


def exact_side(a, b, p):
    """Return the sign of the orientation of a, b, p, computed in rational arithmetic."""
    a, b, p = ([Fraction(float(value)) for value in point] for point in (a, b, p))
    turn = (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])
    return (turn > 0) - (turn < 0)


def test_tiled_square_covers_each_centre_once(rasteriser):
    """All corners of the random fans lie on pixel centres, so edges pass through many centres."""
    size = 16
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        middle = torch.randint(2, 14, (2,), generator=generator) + 0.5
        square = torch.tensor([[1, 1], [8, 1], [14, 1], [14, 8], [14, 14], [8, 14], [1, 14], [1, 8]]) + 0.5
        clip = to_clip(torch.cat([square, middle[None]]), (size, size))
        faces = torch.tensor([[i, (i + 1) % 8, 8] for i in range(8)])
        # Each view shows one of the faces.
        alone = rasteriser.rasterize(clip[0, faces], torch.tensor([[0, 1, 2]]), (size, size))
        count = alone[..., 3].sum(0)
        # By the top-left rule, the square contains the pixel centres on its top and left border, but not
        # those on its bottom and right border.
        expected = torch.zeros(size, size)
        expected[1:14, 1:14] = 1
        assert torch.equal(count, expected)
        together = rasteriser.rasterize(clip, faces, (size, size))[0, ..., 3] > 0
        assert torch.equal(together, expected > 0)


@pytest.fixture(scope="module")
def exact_coverage():
    """Return triangles [N,3,2], and two masks [N,H,W] of the pixel centres inside and outside of each."""
    triangles = torch.randint(-8, 40, (40, 3, 2), generator=torch.Generator().manual_seed(1)) / 2
    inside, outside = torch.zeros(2, 40, 8, 16, dtype=torch.bool)
    for (view, row, column), _ in np.ndenumerate(inside):
        corners, p = triangles[view], (column + 0.5, row + 0.5)
        sides = {exact_side(corners[i], corners[(i + 1) % 3], p) for i in range(3)}
        inside[view, row, column] = len(sides) == 1 and 0 not in sides
        outside[view, row, column] = {1, -1} <= sides
    return triangles, inside, outside


def test_coverage_equals_exact_half_planes(rasteriser, exact_coverage):
    triangles, inside, outside = exact_coverage
    height, width = inside.shape[1:]
    # Each view shows one of the triangles.
    clip = torch.cat([to_clip(corners, (height, width)) for corners in triangles])
    rast = rasteriser.rasterize(clip, torch.tensor([[0, 1, 2]]), (height, width))
    covered = rast[..., 3] > 0
    assert inside.any() and outside.any()
    assert covered[inside].all() and not covered[outside].any()


# The following tests compare perspective with a reference that intersects rays with triangles in world space.


def cast_rays(triangles, directions, near, far):
    """Return each ray's nearest hit: index [R] (−1 if none), u and v of corners 0 and 1, depth along −z."""
    best = np.full(len(directions), np.inf)
    face, u, v = np.full(len(directions), -1), np.zeros(len(directions)), np.zeros(len(directions))
    for index, (a, b, c) in enumerate(triangles):
        # Solve t·d = u a + v b + (1 − u − v) c.
        matrix = np.stack(
            [np.broadcast_to(a - c, directions.shape), np.broadcast_to(b - c, directions.shape)], -1
        )
        matrix = np.concatenate([matrix, -directions[..., None]], -1)
        solution = np.linalg.solve(matrix, np.broadcast_to(-c, directions.shape)[..., None])[..., 0]
        p, q, t = solution.T
        depth = -t * directions[:, 2]
        hit = (p >= 0) & (q >= 0) & (p + q <= 1) & (depth >= near) & (depth <= far) & (depth < best)
        best[hit], face[hit], u[hit], v[hit] = depth[hit], index, p[hit], q[hit]
    return face, u, v, best


@pytest.fixture(scope="module")
def soup():
    """Return random triangles around a camera at the origin, and the hits of rays.

    Many of the triangles extend behind the camera.
    """
    height, width, near, far, fovy = 24, 20, 0.5, 20.0, 1.2
    generator = np.random.default_rng(3)
    centre = generator.uniform([-3, -3, -8], [3, 3, 1], (60, 1, 3))
    triangles = centre + generator.normal(0, 1.5, (60, 3, 3))
    focal = 1 / math.tan(fovy / 2)
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    x = ((column + 0.5) * 2 / width - 1) * (width / height) / focal
    y = (1 - (row + 0.5) * 2 / height) / focal
    directions = np.stack([x, y, -np.ones_like(x)], -1).reshape(-1, 3)
    projection = perspective(torch.tensor([fovy], dtype=torch.float64), width / height, near, far)
    points = torch.tensor(triangles.reshape(-1, 3))
    clip = (torch.cat([points, torch.ones(len(points), 1)], -1) @ projection[0].T)[None].float()
    seen = cast_rays(triangles, directions, near, far)
    return {
        "clip": clip,
        "faces": torch.arange(180).view(60, 3),
        "points": points.float(),
        "resolution": (height, width),
        "rays": directions,
        "seen": seen,
        "near_far": (near, far),
    }


def test_soup_equals_ray_casting(rasteriser, soup):
    face, u, v, depth = soup["seen"]
    height, width = soup["resolution"]
    rast = rasteriser.rasterize(soup["clip"], soup["faces"], soup["resolution"]).view(-1, 4).numpy()
    assert (face >= 0).mean() > 0.5
    same = rast[:, 3] - 1 == face
    # Rounding of clip positions to float32 moves an edge by about 1e-6 of a pixel, which changes no pixel
    # here.
    assert same.mean() == 1.0
    hit = face >= 0
    np.testing.assert_allclose(rast[hit, 0], u[hit], atol=2e-5)
    np.testing.assert_allclose(rast[hit, 1], v[hit], atol=2e-5)
    near, far = soup["near_far"]
    expected = (far + near) / (far - near) - 2 * far * near / (far - near) / depth[hit]
    np.testing.assert_allclose(rast[hit, 2], expected, atol=1e-5)


def test_interpolated_positions_are_the_points_hit(rasteriser, soup):
    """Interpolated positions equal the hits of the rays, so the interpolation is perspective-correct."""
    face, _, _, depth = soup["seen"]
    rast = rasteriser.rasterize(soup["clip"], soup["faces"], soup["resolution"])
    points = rasteriser.interpolate(soup["points"], rast, soup["faces"]).view(-1, 3).numpy()
    hit = face >= 0
    np.testing.assert_allclose(points[hit], (soup["rays"] * depth[:, None])[hit], atol=2e-4)
    assert (points[~hit] == 0).all()
    batched = rasteriser.interpolate(soup["points"][None], rast, soup["faces"])
    assert torch.equal(batched.view(-1, 3), torch.as_tensor(points))


def test_views_of_a_batch_are_independent(rasteriser, soup):
    clip = torch.cat([soup["clip"], soup["clip"].flip(1) * 0.5])
    attributes = torch.randn(2, 180, 5, generator=torch.Generator().manual_seed(0))
    rast = rasteriser.rasterize(clip, soup["faces"].int(), soup["resolution"])
    image = rasteriser.interpolate(attributes, rast, soup["faces"].int())
    for view in range(2):
        alone = rasteriser.rasterize(clip[view, None], soup["faces"], soup["resolution"])
        assert torch.equal(rast[view], alone[0])
        drawn = rasteriser.interpolate(attributes[view, None], alone, soup["faces"])
        assert torch.equal(image[view], drawn[0])


def test_gradients_of_rasterize_and_interpolate_by_gradcheck(fast_rasteriser):
    """Gradients of corners (via u, v) and attributes are tested in float64.

    One corner is behind the camera.
    """
    generator = torch.Generator().manual_seed(5)
    clip = torch.tensor(
        [[-0.9, -0.8, 0.1, 1.0], [1.6, -1.2, 0.3, 2.0], [0.1, 0.9, 0.2, 1.2], [3.0, 2.0, -1.0, -0.7]],
        dtype=torch.float64,
    )
    clip = torch.stack([clip, clip * 0.9]).requires_grad_()
    faces = torch.tensor([[0, 1, 2], [1, 3, 2]])
    attributes = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator).requires_grad_()

    def draw(clip, attributes):
        return fast_rasteriser.interpolate(attributes, fast_rasteriser.rasterize(clip, faces, (5, 4)), faces)

    seen = fast_rasteriser.rasterize(clip, faces, (5, 4))[..., 3].detach()
    assert set(seen.unique().tolist()) >= {1.0, 2.0}
    assert torch.autograd.gradcheck(draw, (clip, attributes), nondet_tol=1e-9)
    shared = attributes.detach()[0].requires_grad_()
    assert torch.autograd.gradcheck(draw, (clip, shared), nondet_tol=1e-9)


def test_interpolation_with_other_faces_at_a_seam(rasteriser):
    """The faces passed to interpolate select the attributes, even if they are not the rasterised faces."""
    clip = to_clip(torch.tensor([[0.0, 0], [8, 0], [8, 8], [0, 8]]), (8, 8))
    rast = rasteriser.rasterize(clip, torch.tensor([[0, 1, 2], [0, 2, 3]]), (8, 8))
    values = torch.arange(6.0)[:, None].expand(6, 1)
    image = rasteriser.interpolate(values, rast, torch.tensor([[5, 5, 5], [2, 2, 2]]))
    assert torch.equal(image[0, ..., 0] == 5, rast[0, ..., 3] == 1)
    assert torch.equal(image[0, ..., 0] == 2, rast[0, ..., 3] == 2)


def test_texture_equals_a_slow_bilinear_lookup(rasteriser):
    generator = torch.Generator().manual_seed(2)
    texture = torch.rand(5, 3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    uv = torch.rand(2, 4, 6, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    image = rasteriser.texture(texture, uv)
    for b, i, j in np.ndindex(2, 4, 6):
        x, y = uv[b, i, j, 0].item() * 3 - 0.5, uv[b, i, j, 1].item() * 5 - 0.5
        expected = 0
        for row, column in (
            (r, c) for r in (math.floor(y), math.floor(y) + 1) for c in (math.floor(x), math.floor(x) + 1)
        ):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            expected = expected + weight * texture[min(max(row, 0), 4), min(max(column, 0), 2)]
        torch.testing.assert_close(image[b, i, j], expected)
    inner = (uv * 0.3 + 0.31).requires_grad_()
    assert torch.autograd.gradcheck(rasteriser.texture, (texture, inner))


def test_empty_mesh(rasteriser):
    clip = torch.zeros(2, 0, 4, requires_grad=True)
    faces = torch.zeros(0, 3, dtype=torch.long)
    attributes = torch.zeros(0, 3, requires_grad=True)
    rast = rasteriser.rasterize(clip, faces, (4, 6))
    image = rasteriser.interpolate(attributes, rast, faces)
    image = rasteriser.antialias(image, rast, clip, faces)
    image.sum().backward()
    assert rast.shape == (2, 4, 6, 4) and image.shape == (2, 4, 6, 3)
    assert not rast.any() and not image.any()


def test_degenerate_triangles_are_skipped(rasteriser):
    """Only the valid face is drawn.

    The other faces have no area, contain NaN or infinity, or are not in view.
    """
    sound = [[-0.5, -0.5, 0, 1], [0.5, -0.5, 0, 1], [0, 0.5, 0, 1]]
    odd = [[math.nan, 0, 0, 1], [math.inf, 0, 0, 1], [0, 0, 0, 0], [0.3, 0.1, 0, -1], [1e30, 1e30, 0, 1e-30]]
    clip = torch.tensor([sound + odd], requires_grad=True)
    faces = torch.tensor(
        [[0, 1, 2], [0, 0, 1], [0, 1, 3], [0, 1, 4], [5, 5, 5], [6, 6, 6], [7, 7, 7], [7, 0, 0]]
    )
    rast = rasteriser.rasterize(clip, faces, (16, 16))
    mask = (rast[..., 3:] > 0).float()
    mask = rasteriser.antialias(mask, rast, clip, faces)
    colour = rasteriser.interpolate(torch.ones(8, 1), rast, faces)
    (mask.sum() + colour.square().sum()).backward()
    assert set(rast[..., 3].unique().tolist()) == {0.0, 1.0}
    assert mask.isfinite().all()
    assert clip.grad[0, :3].isfinite().all() and clip.grad[0, 7].isfinite().all()


def test_depth_and_clipping_planes(rasteriser):
    """The nearest face is drawn.

    If several faces have this depth, the first of them is drawn. Nothing is drawn at depths beyond ±1.
    """
    square = [[-1.0, -1], [3, -1], [-1, 3]]
    depths = [0.5, -0.5, 0.0, -0.5, 1.5, -1.5]
    clip = torch.tensor([[[x, y, z, 1.0] for z in depths for x, y in square]])
    rast = rasteriser.rasterize(clip, torch.arange(18).view(6, 3), (4, 4))
    assert (rast[..., 3] == 2).all() and (rast[..., 2] == -0.5).all()
