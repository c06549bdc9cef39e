"""Compare cube maps and lat-long maps with closed forms on the sphere."""

import math

import pytest
import torch

from render.shade.cubemap import (
    bordered,
    cube_to_latlong,
    face_coordinates,
    halve,
    latlong_directions,
    latlong_to_cube,
    sample_bordered,
    texel_directions,
    texel_solid_angles,
)


def unit_vectors(count, seed=0, dtype=torch.float32):
    vectors = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1).to(dtype)


def smooth_light(direction):
    """Return a colour that depends smoothly on the direction. Exchanging two axes changes the colour."""
    x, y, z = direction.unbind(-1)
    return torch.stack([1.5 + x + 0.3 * y * z, 1.2 + y - 0.2 * x, 1.3 - 0.7 * z + 0.4 * x * y], -1)


def lookup(cube, direction):
    return sample_bordered(bordered(cube), *face_coordinates(direction), cube.shape[1])


def test_texel_centres_map_to_their_texels():
    size = 8
    face, coordinates = face_coordinates(texel_directions(size).reshape(-1, 3))
    assert torch.equal(face, torch.arange(6).repeat_interleave(size * size))
    centres = (torch.arange(size) + 0.5) * 2 / size - 1
    expected = (
        torch.stack(torch.meshgrid(centres, centres, indexing="ij")[::-1], -1).reshape(-1, 2).repeat(6, 1)
    )
    assert torch.allclose(coordinates, expected, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 16])
def test_solid_angles_cover_the_sphere(size):
    angles = texel_solid_angles(size)
    assert angles.sum() * 6 == pytest.approx(4 * math.pi, rel=1e-6)
    assert angles.min() > 0


def test_lookup_reproduces_a_smooth_function_to_second_order():
    errors = []
    for size in (16, 32, 64):
        direction = unit_vectors(5000)
        errors.append(
            (lookup(smooth_light(texel_directions(size)), direction) - smooth_light(direction)).abs().max()
        )
    assert errors[0] < 0.02
    # At edges and corners the texels of the two faces form different lattices, so convergence is slower
    # there.
    assert errors[1] / errors[0] < 0.55 and errors[2] / errors[1] < 0.55


@pytest.mark.parametrize("size", [2, 7, 16])
def test_no_seam_across_edges_and_corners(size):
    """With random texels, lookups at two close points on different sides of a cube edge are almost equal."""
    cube = torch.rand(6, size, size, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    along = torch.linspace(-1, 1, 201, dtype=torch.float64)
    for axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        for a in (-1, 1):
            for b in (-1, 1):
                inside, outside = (torch.zeros(201, 3, dtype=torch.float64) for _ in range(2))
                for points, shift in ((inside, 1e-9), (outside, -1e-9)):
                    points[:, axes[0]] = a * (1 + shift)
                    points[:, axes[1]] = b
                    points[:, axes[2]] = along
                assert not torch.equal(face_coordinates(inside)[0], face_coordinates(outside)[0])
                assert (lookup(cube, inside) - lookup(cube, outside)).abs().max() < 1e-6


def test_border_of_a_constant_cube_is_that_constant():
    table = bordered(torch.full((6, 4, 4, 3), 1.7))
    assert len(table) == 6 * 6 * 6 and torch.allclose(table, torch.tensor(1.7))


def test_latlong_orientation():
    """The top row is +y, the centre −z, the column at 3/4 of the width +x, and the side borders +z."""
    height, width = 64, 128
    direction = latlong_directions(height, width)
    step = 2 * math.pi / width
    for (row, column), expected in {
        (0, 17): (0, 1, 0),
        (63, 90): (0, -1, 0),
        (32, 64): (0, 0, -1),
        (32, 96): (1, 0, 0),
        (32, 32): (-1, 0, 0),
        (32, 0): (0, 0, 1),
        (32, 127): (0, 0, 1),
    }.items():
        assert (direction[row, column] - torch.tensor(expected)).norm() < step
    image = smooth_light(direction)
    cube = latlong_to_cube(image, 32)
    assert torch.allclose(cube, smooth_light(texel_directions(32)), atol=0.02)


def test_latlong_to_cube_and_back():
    image = smooth_light(latlong_directions(128, 256))
    image[20:24, 60:64] += 5.0
    back = cube_to_latlong(latlong_to_cube(image, 128), 128)
    error = (back - image).abs()
    far_from_the_lamp = torch.ones(128, 256, dtype=torch.bool)
    far_from_the_lamp[16:28, 56:68] = False
    assert error[far_from_the_lamp].max() < 0.01
    # The conversion blurs the lamp but does not move it, so the brightest pixel is still inside the lamp.
    row, column = divmod(int(back[..., 0].argmax()), 256)
    assert 20 <= row < 24 and 60 <= column < 64


def test_resampling_and_halving_preserve_power():
    """A lamp of a few pixels in a large map has the same total power in the cube and in each mip level."""
    image = torch.zeros(512, 1024, 3)
    image[150:156, 700:706] = 100.0
    polar = (torch.arange(512) + 0.5) * math.pi / 512
    power = (image[..., 0] * polar.sin()[:, None]).sum() * (math.pi / 512) ** 2
    cube = latlong_to_cube(image, 64)
    sizes = [64, 32, 16, 8]
    powers = []
    for size in sizes:
        powers.append((cube[..., 0] * texel_solid_angles(size)).sum())
        cube = halve(cube)
    assert powers[0] == pytest.approx(float(power), rel=0.05)
    assert powers[1:] == pytest.approx([float(powers[0])] * 3, rel=1e-5)


def test_lookup_gradients():
    size = 4
    cube = torch.rand(6, size, size, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = unit_vectors(12, seed=5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lookup, (cube.requires_grad_(), direction), eps=1e-6, atol=1e-6)
