"""Test properties of projection unwrapping for any mesh. Overlaps are tested for all pairs of faces."""

import numpy as np
import pytest
import torch
from export_shapes import bumpy_ball, noise_surface

from render.mesh import Mesh
from render.texturing.projection import (
    affordable_padding,
    face_neighbours,
    face_normals,
    folded_edges,
    pack_rectangles,
    project,
)


def arrays(mesh: Mesh):
    """Return the positions, scaled to [0, 1], and the faces."""
    positions = mesh.v_pos.numpy()
    return (positions - positions.min()) / np.ptp(positions), mesh.faces.numpy()


def signed_areas(uv, uv_faces):
    a, b, c = (uv[uv_faces[:, corner]].astype(np.float64).T for corner in range(3))
    return ((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]) / 2


def overlaps(uv, uv_faces, slack=1e-6):
    """Return the number of overlapping pairs of faces.

    Two faces are disjoint if an edge of one of them has the whole other face on its outer side.
    """
    corner = uv[uv_faces[signed_areas(uv, uv_faces) > 1e-9]].astype(np.float64)
    edge = np.roll(corner, -1, axis=1) - corner
    inward = np.stack([-edge[..., 1], edge[..., 0]], -1)
    inward /= np.linalg.norm(inward, axis=-1, keepdims=True)
    apart = np.zeros((len(corner), len(corner)), bool)
    for k in range(3):
        level = np.einsum("fi,fi->f", inward[:, k], corner[:, k])
        depth = np.einsum("fi,gci->fgc", inward[:, k], corner).max(-1) - level[:, None]
        apart |= depth < slack
    pairs = ~(apart | apart.T)
    np.fill_diagonal(pairs, False)
    return int(pairs.sum()) // 2


def helix(turns=3, columns=40):
    """Return a spiral ramp around the z axis. Its faces point up. Each turn lies above the previous one."""
    angle = np.linspace(0, 2 * np.pi * turns, columns * turns + 1)
    ring = np.stack([np.cos(angle), np.sin(angle)], -1)
    height = 0.1 * angle[:, None] / np.pi
    positions = np.concatenate([np.concatenate([ring * radius, height], -1) for radius in (0.3, 1.0)])
    inner = np.arange(len(angle) - 1)
    outer = inner + len(angle)
    faces = np.concatenate(
        [np.stack([inner, outer, outer + 1], -1), np.stack([inner, outer + 1, inner + 1], -1)]
    )
    positions = (positions - positions.min()) / np.ptp(positions)
    assert (face_normals(positions, faces)[0][:, 2] > 0.9).all()
    return positions, faces


def soup(faces=400):
    """Return random triangles of all sizes. Some are slivers or have no area. Some edges have three faces."""
    generator = np.random.default_rng(5)
    positions = generator.random((200, 3))
    positions[100:] = positions[:100] + 0.01 * generator.random((100, 3))
    triangles = generator.integers(0, 200, (faces, 3))
    return positions, np.concatenate([triangles, triangles[:20, ::-1], triangles[:5]])


def fan(slivers=1500):
    """Return slivers around a point, all in one cell of a chart, and a triangle that is 1000 times larger."""
    angle = np.linspace(0, 2 * np.pi, slivers, endpoint=False)
    rim = np.stack([0.5 + 0.01 * np.cos(angle), 0.5 + 0.01 * np.sin(angle), 0 * angle], -1)
    positions = np.concatenate([rim, [[0.5, 0.5, 0.0], [1, 1, 0]]])
    corner = np.arange(slivers)
    faces = np.stack([corner, (corner + 1) % slivers, np.full(slivers, slivers)], -1)
    return positions, np.concatenate([faces, [[1, 0, slivers + 1]]])


def needles(count=1000):
    """Return randomly rotated long triangles with heights of 1e−8 to 1e−4 of the mesh size."""
    generator = np.random.default_rng(9)
    start = generator.random((count, 3))
    along = generator.normal(size=(count, 3))
    across = np.cross(along, generator.normal(size=(count, 3)))
    along, across = (0.2 * v / np.linalg.norm(v, axis=1, keepdims=True) for v in (along, across))
    height = 10 ** generator.uniform(-8, -4, (count, 1)) / 0.2
    corners = np.stack([start, start + along, start + 0.4 * along + height * across], 1)
    positions = np.concatenate([corners.reshape(-1, 3), np.eye(3)])
    positions = (positions - positions.min()) / np.ptp(positions)
    return positions, np.arange(3 * count + 3).reshape(-1, 3)


SHAPES = {
    "needles": needles,
    "fan": fan,
    "ball": lambda: arrays(bumpy_ball()),
    "noise": lambda: arrays(noise_surface(4)),
    "helix": helix,
    "soup": soup,
}


@pytest.fixture(scope="module", params=SHAPES)
def case(request):
    positions, faces = SHAPES[request.param]()
    return positions, faces, project(positions, faces, 512, 2)


def test_faces_keep_their_corners_and_lie_in_the_image(case):
    positions, faces, (uv, uv_faces, charts, padding) = case
    assert uv_faces.shape == faces.shape and uv.dtype == np.float32
    assert uv.min() >= 0 and uv.max() <= 1 and charts > 0 and 0 <= padding <= 2
    # Each uv vertex belongs to one position.
    pairs = np.stack([uv_faces.reshape(-1), faces.reshape(-1)], -1)
    assert len(np.unique(pairs, axis=0)) == len(uv)


def test_no_face_is_mirrored_or_lost(case):
    positions, faces, (uv, uv_faces, _, _) = case
    signed = signed_areas(uv, uv_faces)
    assert (signed >= 0).all()
    corner = positions[faces].astype(np.float64)
    area = face_normals(positions, faces)[1]
    longest = np.linalg.norm(np.roll(corner, -1, axis=1) - corner, axis=-1).max(1)
    proper = 2 * area > 2e-5 * longest
    assert (signed[proper] > 0).all() and proper.mean() > 0.1


def test_no_two_faces_overlap(case):
    _, _, (uv, uv_faces, _, _) = case
    assert overlaps(uv, uv_faces) == 0


def test_overlap_check_finds_an_overlap():
    uv = np.array([[0, 0], [0.5, 0], [0, 0.5], [0.1, 0.1], [0.9, 0.1], [0.1, 0.9]], np.float32)
    assert overlaps(uv, np.array([[0, 1, 2], [3, 4, 5]])) == 1
    assert overlaps(uv, np.array([[0, 1, 2], [1, 4, 2]])) == 0


def test_spiral_ramp_is_cut_once_per_turn():
    positions, faces = helix()
    assert project(positions, faces, 512, 2)[2] in (3, 4)


def test_flat_sheet_is_one_chart_that_fills_its_rectangle():
    """A rotated sheet fills its rectangle, because the unwrapper finds the smallest rectangle."""
    x, y = (axis.reshape(-1) for axis in np.meshgrid(np.linspace(0, 0.8, 9), np.linspace(0, 0.4, 5)))
    corner = (np.arange(4)[:, None] * 9 + np.arange(8)).reshape(-1)
    faces = np.concatenate(
        [np.stack([corner, corner + 1, corner + 10], -1), np.stack([corner, corner + 10, corner + 9], -1)]
    )
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    positions = np.stack([x, y, 0 * x], -1) @ turn.T
    uv, uv_faces, charts, _ = project(positions - positions.min(0), faces, 256, 4)
    assert charts == 1
    width, height = np.ptp(uv, axis=0)
    assert width == pytest.approx(248 / 256, rel=0.02) and height == pytest.approx(124 / 256, rel=0.06)


def test_texel_density_depends_only_on_the_projection_angle():
    """The smallest texel density is at least the largest density times the smallest projection cosine."""
    positions, faces = arrays(bumpy_ball())
    uv, uv_faces, _, _ = project(positions, faces, 512, 2)
    density = signed_areas(uv, uv_faces) / face_normals(positions, faces)[1]
    assert density.min() > 0.29 * density.max() and np.median(density) > 0.6 * density.max()


def test_more_charts_than_texels_do_not_overlap():
    positions, faces = arrays(noise_surface(5))
    uv, uv_faces, charts, padding = project(positions, faces, 8, 4)
    assert charts > 64 and padding == 0
    assert (signed_areas(uv, uv_faces) >= 0).all() and overlaps(uv, uv_faces, slack=1e-5) == 0


def test_mesh_without_area_maps_to_one_point():
    uv, uv_faces, charts, _ = project(np.zeros((4, 3)), np.array([[0, 1, 2], [2, 2, 3]]), 64, 4)
    assert charts == 0 and uv_faces.shape == (2, 3) and (uv == 0.5).all()


def test_unwrapping_is_deterministic():
    positions, faces = arrays(noise_surface(6))
    first, second = project(positions, faces, 512, 4), project(positions, faces, 512, 4)
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])


def test_neighbours_equal_a_slow_search():
    _, faces = soup(150)
    expected = np.full(faces.shape, -1)
    edges = {}
    for face, corners in enumerate(faces):
        for k in range(3):
            edges.setdefault(frozenset((corners[k], corners[(k + 1) % 3])), []).append((face, k))
    for sides in edges.values():
        if len(sides) == 2:
            (a, i), (b, j) = sides
            expected[a, i], expected[b, j] = b, a
    assert np.array_equal(face_neighbours(faces, 200), expected) and (expected >= 0).any()


def test_folded_edges_of_a_cube_and_a_ball():
    cube = (
        torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]).numpy().astype(np.float32)
    )
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = np.array([[q[0], *pair] for q in quads for pair in (q[1:3], q[2:])])
    assert folded_edges(cube, faces) == 12
    assert folded_edges(*arrays(bumpy_ball())) == 0


@pytest.mark.parametrize("count, padding", [(1, 0), (7, 4), (300, 2), (3000, 0)])
def test_packed_rectangles_do_not_overlap_and_margins_are_free(count, padding):
    """The test draws every rectangle and its margin into an image and counts the rectangles per pixel."""
    side = 256
    sizes = np.random.default_rng(count).random((count, 2)) ** 2 + 1e-3
    scale, corners = pack_rectangles(sizes, side, padding)
    owners = np.zeros((side + 2 * padding, side + 2 * padding), int)
    for (width, height), (x, y) in zip(np.ceil(sizes * scale).astype(int), corners, strict=True):
        assert x >= padding and y >= padding
        assert x + width + padding <= side and y + height + padding <= side
        owners[y - padding : y + height + padding, x - padding : x + width + padding] += 1
    assert owners.max() == 1


def test_packing_uses_the_largest_scale():
    """Each of four equal squares is half as wide as the texture. 100 rectangles fill most of the texture."""
    scale, _ = pack_rectangles(np.ones((4, 2)), 256, 0)
    assert scale == pytest.approx(128, rel=1e-3)
    sizes = np.sort(np.random.default_rng(2).uniform(0.5, 1, (100, 2)))[:, ::-1]
    scale, _ = pack_rectangles(sizes, 1024, 0)
    assert 0.75 < (sizes * scale).prod(1).sum() / 1024**2 <= 1


def test_padding_is_reduced_for_many_charts():
    assert affordable_padding(10, 1024, 4) == 4
    assert affordable_padding(10**6, 1024, 4) == 0
    for count in (10**3, 10**4, 10**5):
        kept = affordable_padding(count, 1024, 64)
        # The margins on both sides together are at most a third of the mean side of a cell, and not much
        # smaller.
        assert 2 * kept <= 1024 / count**0.5 / 3 < 2 * kept + 4
